#include "nn/report/event_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstring>
#include <fstream>

#include "nn/checkpoint/crc32c.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

// Protobuf's wire format: fields, each a key (its number and how it is written) and a value.
class Message {
 public:
  Message& number(int field, uint64_t value) { return key(field, 0).varint(value); }
  Message& fixed(int field, double value) { return key(field, 1).raw(std::bit_cast<uint64_t>(value)); }
  Message& fixed(int field, float value) { return key(field, 5).raw(std::bit_cast<uint32_t>(value)); }
  Message& bytes(int field, std::string_view value) {
    key(field, 2).varint(value.size());
    text_ += value;
    return *this;
  }
  Message& message(int field, const Message& value) { return bytes(field, value.text_); }
  const std::string& text() const { return text_; }

 private:
  Message& key(int field, int type) { return varint(uint64_t(field) << 3 | uint64_t(type)); }
  Message& varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += char(value | 0x80);
    text_ += char(value);
    return *this;
  }
  template <class T>
  Message& raw(T value) {  // little-endian
    for (size_t i = 0; i < sizeof(T); ++i) text_ += char(value >> 8 * i);
    return *this;
  }
  std::string text_;
};

// The checksum of TensorFlow's records, "masked" so that one of data with checksums in it is no worse.
uint32_t masked_crc(std::string_view bytes) {
  uint32_t crc = crc32c(std::as_bytes(std::span(bytes)));
  return std::rotr(crc, 15) + 0xa282ead8u;
}

template <class T>
void append(std::string& to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to += char(value >> 8 * i);
}

// Length, its checksum, data, its checksum.
std::string record(const Message& event) {
  std::string out;
  append(out, uint64_t(event.text().size()));
  append(out, masked_crc(out));
  out += event.text();
  append(out, masked_crc(event.text()));
  return out;
}

// The numbers of fields are those of TensorFlow's event.proto, summary.proto and tensor.proto.
Message event_at(double time, int64_t step) {
  Message m;
  m.fixed(1, time);
  if (step) m.number(2, uint64_t(step));
  return m;
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

namespace event {

std::string version(double time) { return record(event_at(time, 0).bytes(3, "brain.Event:2")); }

std::string start(double time, int64_t step) {
  constexpr int session_start = 1;
  return record(event_at(time, step).message(7, Message().number(1, session_start)));
}

std::string scalars(double time, int64_t step, std::span<const std::pair<std::string, double>> values) {
  Message summary;
  for (const auto& [tag, value] : values) summary.message(1, Message().bytes(1, tag).fixed(2, float(value)));
  return record(event_at(time, step).message(5, summary));
}

std::string text(double time, int64_t step, std::string_view tag, std::string_view markdown) {
  constexpr int string_type = 7;
  Message shape = Message().message(2, Message().number(1, 1));  // [1]
  Message tensor = Message().number(1, string_type).message(2, shape).bytes(8, markdown);
  Message metadata = Message().message(1, Message().bytes(1, "text"));
  Message value = Message().bytes(1, tag).message(8, tensor).message(9, metadata);
  return record(event_at(time, step).message(5, Message().message(1, value)));
}

}  // namespace event

TensorBoard::TensorBoard(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  check(!error, "[TensorBoard] cannot make the folder {}: {}", folder.string(), error.message());
  char host[256] = "host";
  gethostname(host, sizeof host - 1);
  double time = now();
  for (int i = 0; file_.empty() || std::filesystem::exists(file_); ++i)
    file_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}.{}", int64_t(time), host, getpid(), i);
  write(event::version(time));
}

void TensorBoard::begin(int64_t done, const std::vector<nlohmann::ordered_json>&) {
  write(event::start(now(), done + 1));
}

void TensorBoard::line(const nlohmann::ordered_json& line) {
  int64_t step = line.value("step", int64_t(0));
  std::string kind = line.value("kind", "");
  if (kind == "run") write(event::text(now(), step, "command", "    " + line.value("command", "")));
  if (kind == "sample")
    write(event::text(now(), step, "sample", line.value("prompt", "") + "**" + line.value("text", "") + "**"));
  if (auto values = numbers(line); !values.empty()) write(event::scalars(now(), step, values));
}

void TensorBoard::write(const std::string& record) {
  std::ofstream out(file_, std::ios::app | std::ios::binary);
  out << record << std::flush;
  check(out.good(), "[TensorBoard] cannot write {}: is the disk full, or the folder not yours?", file_.string());
}

}  // namespace dtensor::nn
