#include "nn/report/event_file.h"

#include <fmt/format.h>

#include "tests/examples/programs.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;

namespace {

std::string hex(const std::string& bytes) {
  std::string out;
  for (char c : bytes) out += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return out;
}

// The records of a file, each with its length and checksums.
Words records_of(const std::string& bytes) {
  Words all;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(bytes[at + size_t(i)]);
    REQUIRE(length + 16 <= bytes.size() - at);
    all.push_back(bytes.substr(at, length + 16));
    at += length + 16;
  }
  return all;
}

}  // namespace

TEST_CASE("event records are the bytes that TensorBoard's own writer gives") {
  Json want = Json::parse(read(source("tests/data/reference/event_file.json")));
  CHECK(hex(event::version(1764398400.25)) == want["version"]);
  CHECK(hex(event::start(1764398400.5, 301)) == want["start"]);
  std::vector<std::pair<std::string, double>> values{{"loss", 2.3456789}, {"time/communication", -1e-30}};
  CHECK(hex(event::scalars(1764398401.125, int64_t(1) << 40, values)) == want["scalars"]);
  CHECK(hex(event::text(1764398402.0, 0, "command", "grün, " + std::string(300, 'x'))) == want["text"]);
}

TEST_CASE("a run's numbers, command and samples are events, and a run that is resumed forgets what it trains again") {
  Folder folder;
  TensorBoard board(folder / "runs/a");
  board.begin(3, {Json{{"step", 3}, {"loss", 2.5}}});
  board.line(Json::parse(R"({"kind": "run", "command": "llama_pretrain --steps 9"})"));
  board.line(Json::parse(R"({"step": 4, "loss": 2.25, "hash": "00ff", "skipped": true, "time": {"products": 0.5}})"));
  board.line(Json::parse(R"({"step": 5, "loss": null})"));  // no number, no event
  board.line(Json::parse(R"({"kind": "eval", "step": 5, "eval_loss": 2.125})"));
  board.line(Json::parse(R"({"kind": "sample", "step": 5, "prompt": "Once", "text": " upon"})"));
  Words records = records_of(read(board.file()));
  REQUIRE(records.size() == 6);
  auto body = [&](size_t i) { return records[i].substr(12 + 9); };  // without length, checksum and time
  CHECK_THAT(records[0], Contains("brain.Event:2"));
  auto same = [&](size_t i, const std::string& expected) {
    std::string e = expected.substr(12 + 9);
    CHECK(hex(body(i).substr(0, body(i).size() - 4)) == hex(e.substr(0, e.size() - 4)));
  };
  using Values = std::vector<std::pair<std::string, double>>;
  same(1, event::start(0.5, 4));
  same(2, event::text(0.5, 0, "command", "    llama_pretrain --steps 9"));
  same(3, event::scalars(0.5, 4, Values{{"loss", 2.25}, {"time/products", 0.5}}));
  same(4, event::scalars(0.5, 5, Values{{"eval_loss", 2.125}}));
  same(5, event::text(0.5, 5, "sample", "Once** upon**"));
  TensorBoard other(folder / "runs/a");
  CHECK(other.file() != board.file());
}

TEST_CASE("a folder for event files that cannot be made or written is said by its name") {
  Folder folder;
  std::string file = folder.write("file", "");
  CHECK_THROWS_WITH(TensorBoard(file + "/runs"), Contains("[TensorBoard] cannot make the folder " + file + "/runs: "));
  TensorBoard board(folder / "runs");
  std::filesystem::remove_all(folder / "runs");
  CHECK_THROWS_WITH(board.begin(0, {}),
                    Contains("[TensorBoard] cannot write ") && Contains("is the disk full, or the folder not yours?"));
}
