#include "nn/data/documents.h"

#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "nn/file.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

constexpr size_t block = size_t(1) << 20;

// The bytes of a file, block after block.
class Reader {
 public:
  virtual ~Reader() = default;
  virtual size_t read(char* to, size_t most) = 0;  // 0: the end
};

class PlainReader : public Reader {
 public:
  explicit PlainReader(const std::string& file) : file_(file), in_(file, std::ios::binary) {
    check(!std::filesystem::is_directory(file), "[data] cannot read {}: it is a folder", file);
    check(in_.good(), "[data] cannot read {}: no such file, or no permission", file);
  }
  size_t read(char* to, size_t most) override {
    in_.read(to, std::streamsize(most));
    check(!in_.bad(), "[data] cannot read {}: the device fails", file_);
    return size_t(in_.gcount());
  }

 private:
  std::string file_;
  std::ifstream in_;
};

class GzipReader : public Reader {
 public:
  explicit GzipReader(const std::string& file) : file_(file) {
    PlainReader exists(file);
    gz_.reset(gzopen(file.c_str(), "rb"));
    check(gz_ != nullptr, "[data] cannot read {}: not enough memory", file);
  }
  size_t read(char* to, size_t most) override {
    int n = gzread(gz_.get(), to, unsigned(most));
    int error = 0;
    const char* what = gzerror(gz_.get(), &error);
    check(n >= 0 && error == Z_OK, "[data] {} is no whole gzip file: {}", file_, what);
    check(n > 0 || gzdirect(gz_.get()) == 0, "[data] {} is no gzip file, whatever its name says", file_);
    return size_t(n);
  }

 private:
  struct Close {
    void operator()(gzFile_s* f) const { gzclose(f); }
  };
  std::string file_;
  std::unique_ptr<gzFile_s, Close> gz_;
};

class ZstdReader : public Reader {
 public:
  explicit ZstdReader(const std::string& file)
      : file_(file), in_(file), stream_(ZSTD_createDStream(), ZSTD_freeDStream) {}
  size_t read(char* to, size_t most) override {
    ZSTD_outBuffer out{to, most, 0};
    while (out.pos == 0) {
      if (buffer_.pos == buffer_.size) {
        bytes_.resize(block);
        buffer_ = {bytes_.data(), in_.read(bytes_.data(), block), 0};
        if (buffer_.size == 0) {
          check(whole_, "[data] {} is cut short: its last zstd frame has no end", file_);
          return 0;
        }
      }
      size_t left = ZSTD_decompressStream(stream_.get(), &out, &buffer_);
      check(!ZSTD_isError(left), "[data] {} is no zstd file: {}", file_,
            ZSTD_isError(left) ? ZSTD_getErrorName(left) : "");
      whole_ = left == 0;
    }
    return out.pos;
  }

 private:
  std::string file_, bytes_;
  PlainReader in_;
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  ZSTD_inBuffer buffer_{nullptr, 0, 0};
  bool whole_ = true;
};

std::unique_ptr<Reader> open(const std::string& file, std::string& name) {
  name = file;
  auto drop = [&](const char* ending) {
    if (!name.ends_with(ending)) return false;
    name.resize(name.size() - std::string_view(ending).size());
    return true;
  };
  if (drop(".gz")) return std::make_unique<GzipReader>(file);
  if (drop(".zst")) return std::make_unique<ZstdReader>(file);
  return std::make_unique<PlainReader>(file);
}

std::string text_of(std::string_view line, const std::string& file, int64_t number) {
  nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  check(!json.is_discarded() && json.is_object(), "[data] line {} of {} is no JSON object", number, file);
  auto text = json.find("text");
  check(text != json.end() && text->is_string(), "[data] line {} of {} has no \"text\"", number, file);
  return std::move(text->get_ref<std::string&>());
}

}  // namespace

void for_documents(const std::string& file, const std::function<void(std::string_view)>& f) {
  std::string name, held;
  std::unique_ptr<Reader> reader = open(file, name);
  bool lines = name.ends_with(".jsonl");
  if (!lines && name == file) {
    MappedFile text(file, "data");
    return f({reinterpret_cast<const char*>(text.data()), text.size()});
  }
  int64_t number = 0;
  auto line = [&](std::string_view text) {
    ++number;
    if (text.find_first_not_of(" \t\r") != std::string_view::npos) f(text_of(text, file, number));
  };
  for (size_t searched = 0;;) {
    size_t size = held.size();
    held.resize(size + block);
    size_t n = reader->read(held.data() + size, block);
    held.resize(size + n);
    if (n == 0) break;
    if (!lines) continue;
    size_t at = 0;
    for (size_t end; (end = held.find('\n', std::max(at, searched))) != std::string::npos; at = end + 1)
      line(std::string_view(held).substr(at, end - at));
    held.erase(0, at);
    searched = held.size();
  }
  if (!lines)
    f(held);
  else if (!held.empty())
    line(held);
}

}  // namespace dtensor::nn
