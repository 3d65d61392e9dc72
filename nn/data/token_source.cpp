#include "nn/data/token_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "nn/data/documents.h"
#include "nn/data/packed_text.h"
#include "nn/file.h"
#include "placement/error.h"

namespace dtensor::nn {

static_assert(std::endian::native == std::endian::little, "shards are mapped as they are");

namespace fs = std::filesystem;

// A part of a file of tokens, or a file of text whose bytes are tokens between [BOT] and [EOT].
struct TokenSource::Shard {
  std::string file;
  std::unique_ptr<MappedFile> map, index_map;
  const std::byte* data = nullptr;  // of the tokens; they need not be aligned
  int width = 0;                    // bytes of a token; 0: text
  int64_t tokens = 0, documents = 0;
  std::vector<int64_t> found_ends = {};         // of the documents, where the file has none
  const std::byte* stored_ends = nullptr;       // or as uint64 in a file
  int64_t first_token = 0, first_document = 0;  // in the whole sequence

  int64_t end(int64_t document) const {
    if (!stored_ends) return found_ends[size_t(document)];
    uint64_t end;
    std::memcpy(&end, stored_ends + 8 * document, 8);
    return int64_t(end);
  }
  int64_t at(int64_t i) const {
    if (width == 0) return i == 0 ? ByteTokenizer::bot : i == tokens - 1 ? ByteTokenizer::eot : int64_t(data[i - 1]);
    if (width == 2) {
      uint16_t t;
      std::memcpy(&t, data + 2 * i, 2);
      return t;
    }
    uint32_t t;
    std::memcpy(&t, data + 4 * i, 4);
    return t;
  }
  void check_ends() const {
    int64_t last = 0;
    for (int64_t d = 0; d < documents; ++d) {
      check(end(d) >= last && end(d) <= tokens, "[data] {}: document {} ends at token {}, outside of {} to {}", file, d,
            end(d), last, tokens);
      last = end(d);
    }
    check(last == tokens, "[data] {}: its documents have {} tokens, the file {}", file, last, tokens);
  }
};

namespace {

constexpr char magic[8] = {'D', 'T', 'T', 'O', 'K', 'E', 'N', 'S'};
struct Header {
  char magic[8];
  uint32_t version, width;
  uint64_t tokens, documents, vocab_size;
};
static_assert(sizeof(Header) == 40);

template <class T>
T value_at(const MappedFile& map, size_t at) {
  T v;
  std::memcpy(&v, map.data() + at, sizeof v);
  return v;
}

size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

// A delimiter begins each document of a shard that stores none.
template <class Shard>
void find_documents(Shard& s, int64_t delimiter) {
  for (int64_t i = 1; i < s.tokens; ++i)
    if (s.at(i) == delimiter) s.found_ends.push_back(i);
  if (s.tokens > 0) s.found_ends.push_back(s.tokens);
  s.documents = int64_t(s.found_ends.size());
}

template <class Shard>
void read_own(Shard& s) {
  const MappedFile& map = *s.map;
  check(map.size() >= sizeof(Header), "[data] {} is cut short: {} bytes are no header", s.file, map.size());
  auto h = value_at<Header>(map, 0);
  check(h.version == 1, "[data] {} is a shard of version {}: 1 is supported", s.file, h.version);
  check(h.width == 2 || h.width == 4, "[data] {} has {} bytes per token, not 2 or 4", s.file, h.width);
  size_t most = map.size();  // so that nothing below overflows
  bool fits = h.tokens <= most && h.documents <= most &&
              sizeof(Header) + padded(size_t(h.tokens * h.width)) + size_t(h.documents) * 8 == most;
  check(fits, "[data] {} is cut short, or not what its header says: {} bytes for {} tokens and {} documents", s.file,
        most, h.tokens, h.documents);
  s.width = int(h.width), s.tokens = int64_t(h.tokens), s.documents = int64_t(h.documents);
  s.data = map.data() + sizeof(Header);
  s.stored_ends = s.data + padded(size_t(h.tokens * h.width));
}

// llm.c's: 256 int32, of which magic, version and number of tokens are used; a delimiter begins each document.
template <class Shard>
void read_llm_c(Shard& s, bool llama3) {
  constexpr size_t header = 256 * 4;
  size_t width = llama3 ? 4 : 2;
  check(s.map->size() >= header, "[data] {} is cut short: {} bytes are no header", s.file, s.map->size());
  auto tokens = value_at<int32_t>(*s.map, 8);
  check(tokens >= 0 && header + size_t(tokens) * width == s.map->size(),
        "[data] {} is cut short, or not what its header says: {} bytes for {} tokens", s.file, s.map->size(), tokens);
  s.width = int(width), s.tokens = tokens, s.data = s.map->data() + header;
  find_documents(s, llama3 ? 128000 : 50256);
}

// Megatron's .idx: magic, version, type, numbers of sequences and documents; the sequences' lengths (int32) and places
// (int64, in bytes); each sequence is a document here.
template <class Shard>
void read_megatron(Shard& s, const std::string& index) {
  s.index_map = std::make_unique<MappedFile>(index, "data");
  const MappedFile& idx = *s.index_map;
  constexpr size_t header = 9 + 8 + 1 + 8 + 8;
  check(idx.size() >= header && std::memcmp(idx.data(), "MMIDIDX\0\0", 9) == 0, "[data] {} is no index of Megatron",
        index);
  check(value_at<uint64_t>(idx, 9) == 1, "[data] {} has version {}: 1 is supported", index, value_at<uint64_t>(idx, 9));
  int type = int(value_at<uint8_t>(idx, 17));
  check(type == 4 || type == 8, "[data] {} has tokens of type {}: 4 (int32) and 8 (uint16) are supported", index, type);
  auto sequences = value_at<uint64_t>(idx, 18);
  check(sequences <= idx.size() / 12 && header + size_t(sequences) * 12 <= idx.size(),
        "[data] {} is cut short: {} bytes for {} sequences", index, idx.size(), sequences);
  s.width = type == 4 ? 4 : 2;
  size_t lengths = header, places = header + size_t(sequences) * 4;
  for (size_t i = 0; i < size_t(sequences); ++i) {
    auto length = value_at<int32_t>(idx, lengths + 4 * i);
    auto place = value_at<int64_t>(idx, places + 8 * i);
    check(length >= 0 && place == s.tokens * s.width,
          "[data] {}: sequence {} of {} tokens is at byte {}, not {}: only sequences one after the other are supported",
          index, i, length, place, s.tokens * s.width);
    s.tokens += length;
    s.found_ends.push_back(s.tokens);
  }
  check(size_t(s.tokens) * size_t(s.width) == s.map->size(), "[data] {} has {} bytes, its index {} tokens", s.file,
        s.map->size(), s.tokens);
  s.data = s.map->data(), s.documents = int64_t(sequences);
}

// nanotron's: tokens alone; the index has each document's end, as uint64. The width is what makes both agree.
template <class Shard>
void read_nanotron(Shard& s) {
  std::string index = s.file + ".index";
  s.index_map = std::make_unique<MappedFile>(index, "data");
  const MappedFile& idx = *s.index_map;
  check(idx.size() % 8 == 0 && idx.size() > 0, "[data] {} has {} bytes: it should have 8 for each document", index,
        idx.size());
  auto tokens = value_at<uint64_t>(idx, idx.size() - 8);
  check(tokens > 0 && tokens <= s.map->size() && (s.map->size() == tokens * 2 || s.map->size() == tokens * 4),
        "[data] {} has {} bytes, its index {} tokens: 2 or 4 bytes each are supported", s.file, s.map->size(), tokens);
  s.width = int(s.map->size() / size_t(tokens));
  s.tokens = int64_t(tokens), s.documents = int64_t(idx.size() / 8);
  s.data = s.map->data(), s.stored_ends = idx.data();
}

bool is_plain_text(const std::string& file) {
  std::string ending = fs::path(file).extension();
  return ending != ".jsonl" && ending != ".gz" && ending != ".zst";
}

}  // namespace

TokenSource::TokenSource(const std::vector<std::string>& files, const std::optional<Tokenizer>& tokenizer) {
  for (const std::string& file : files) {
    if (!fs::is_directory(file)) {
      add(file, tokenizer);
      continue;
    }
    std::vector<std::string> inside;
    for (const auto& entry : fs::directory_iterator(file))
      if (entry.path().extension() == ".bin" || entry.path().extension() == ".ds")
        inside.push_back(entry.path().string());
    std::sort(inside.begin(), inside.end());
    check(!inside.empty(), "[data] cannot read {}: it is a folder without .bin or .ds files", file);
    for (const std::string& path : inside) add(path, tokenizer);
  }
}

void TokenSource::add(const std::string& file, const std::optional<Tokenizer>& tokenizer) {
  auto s = std::make_shared<Shard>();
  s->file = file;
  std::string ending = fs::path(file).extension();
  if (ending == ".bin") {
    s->map = std::make_unique<MappedFile>(file, "data");
    bool eight = s->map->size() >= 8;
    auto first = eight ? value_at<int32_t>(*s->map, 0) : 0, version = eight ? value_at<int32_t>(*s->map, 4) : 0;
    std::string index = fs::path(file).replace_extension(".idx").string();
    if (eight && std::memcmp(s->map->data(), magic, 8) == 0)
      read_own(*s);
    else if (fs::exists(index))
      read_megatron(*s, index);
    else if ((first == 20240520 && version == 1) || (first == 20240801 && version == 7))
      read_llm_c(*s, version == 7);
    else
      fail("[data] {} is no shard of data_prepare or llm.c, and has no .idx of Megatron beside it", file);
  } else if (ending == ".ds") {
    s->map = std::make_unique<MappedFile>(file, "data");
    read_nanotron(*s);
  } else if (!tokenizer && is_plain_text(file)) {
    check(!fs::is_directory(file), "[data] cannot read {}: it is a folder", file);
    s->map = std::make_unique<MappedFile>(file, "data");
    s->data = s->map->data();
    s->tokens = int64_t(s->map->size()) + 2, s->documents = 1, s->found_ends = {s->tokens};
  } else {
    Tokenizer t = tokenizer ? *tokenizer : Tokenizer::bytes();
    ShardWriter writer(t.vocab_size());
    tokenize_documents({file}, t, 0, [&](auto ids, bool last) { writer.add(ids, last); });
    writer.finish();
    s->map = std::make_unique<MappedFile>(writer.path(), "data");
    read_own(*s);
  }
  s->check_ends();
  s->first_token = tokens_, s->first_document = documents_;
  tokens_ += s->tokens, documents_ += s->documents;
  if (s->documents > 0) shards_.push_back(s);
}

const TokenSource::Shard& TokenSource::shard_of_document(int64_t document) const {
  auto after = std::upper_bound(shards_.begin(), shards_.end(), document,
                                [](int64_t d, const auto& s) { return d < s->first_document; });
  return **--after;
}

const TokenSource::Shard& TokenSource::shard_of_token(int64_t token) const {
  auto after = std::upper_bound(shards_.begin(), shards_.end(), token,
                                [](int64_t t, const auto& s) { return t < s->first_token; });
  return **--after;
}

int64_t TokenSource::document_begin(int64_t document) const {
  if (document == documents_) return tokens_;
  const Shard& s = shard_of_document(document);
  int64_t d = document - s.first_document;
  return s.first_token + (d == 0 ? 0 : s.end(d - 1));
}

int64_t TokenSource::document_of(int64_t token) const {
  const Shard& s = shard_of_token(token);
  int64_t low = 0, high = s.documents - 1, at = token - s.first_token;
  while (low < high) {  // the first that ends behind it
    int64_t middle = (low + high) / 2;
    if (s.end(middle) > at)
      high = middle;
    else
      low = middle + 1;
  }
  return s.first_document + low;
}

void TokenSource::read(int64_t begin, std::span<int64_t> to) const {
  for (size_t done = 0; done < to.size();) {
    const Shard& s = shard_of_token(begin + int64_t(done));
    int64_t from = begin + int64_t(done) - s.first_token;
    int64_t n = std::min(s.tokens - from, int64_t(to.size() - done));
    for (int64_t i = 0; i < n; ++i) to[done + size_t(i)] = s.at(from + i);
    done += size_t(n);
  }
}

ShardWriter::ShardWriter(const std::string& file, int64_t vocab_size)
    : file_(file),
      named_(true),
      vocab_size_(vocab_size),
      width_(vocab_size <= 65536 ? 2 : 4),
      out_(std::fopen((file + ".partial").c_str(), "wb")) {
  check(out_ != nullptr, "[data] cannot write {}: does the folder exist?", file);
  begin();
}

ShardWriter::ShardWriter(int64_t vocab_size)
    : named_(false), vocab_size_(vocab_size), width_(vocab_size <= 65536 ? 2 : 4) {
  const char* folder = std::getenv("TMPDIR");
  file_ = std::string(folder && *folder ? folder : "/tmp") + "/dtensor_tokens_XXXXXX";
  int fd = mkostemp(file_.data(), O_CLOEXEC);
  if (fd >= 0) {
    unlink(file_.c_str());
    out_ = fdopen(fd, "wb");
    if (!out_) close(fd);
  }
  check(out_ != nullptr, "[data] cannot write {}: set TMPDIR to a folder with room for the tokens", file_);
  begin();
}

ShardWriter::~ShardWriter() {
  if (!out_) return;
  std::fclose(out_);
  if (named_) std::remove((file_ + ".partial").c_str());
}

// Room for the header, which is written last.
void ShardWriter::begin() {
  Header nothing{};
  write(&nothing, sizeof nothing);
}

std::string ShardWriter::path() const { return named_ ? file_ : fmt::format("/proc/self/fd/{}", fileno(out_)); }

void ShardWriter::write(const void* bytes, size_t size) {
  if (size == 0) return;  // of an empty vector: fwrite may not be given its null
  check(std::fwrite(bytes, 1, size, out_) == size, "[data] cannot write to {}: is the disk full?", file_);
}

void ShardWriter::add(std::span<const int32_t> ids, bool last) {
  for (int32_t t : ids)
    check(t >= 0 && t < vocab_size_, "[data] token {} is outside of the vocabulary of {}", t, vocab_size_);
  if (width_ == 2) {
    std::vector<uint16_t> narrow(ids.begin(), ids.end());
    write(narrow.data(), narrow.size() * 2);
  } else {
    write(ids.data(), ids.size() * 4);
  }
  tokens_ += int64_t(ids.size());
  if (last) ends_.push_back(uint64_t(tokens_));
}

void ShardWriter::finish() {
  size_t bytes = size_t(tokens_ * width_);
  const char zeros[8] = {};
  write(zeros, padded(bytes) - bytes);
  write(ends_.data(), ends_.size() * 8);
  Header h{{}, 1, uint32_t(width_), uint64_t(tokens_), ends_.size(), uint64_t(vocab_size_)};
  std::memcpy(h.magic, magic, 8);
  bool ok = std::fseek(out_, 0, SEEK_SET) == 0;
  write(&h, sizeof h);
  ok = std::fflush(out_) == 0 && ok;
  if (named_) {
    ok = ok && fsync(fileno(out_)) == 0;
    ok = std::fclose(std::exchange(out_, nullptr)) == 0 && ok;
  }
  check(ok, "[data] cannot write to {}: is the disk full?", file_);
  if (named_) fs::rename(file_ + ".partial", file_);
}

void tokenize_documents(const std::vector<std::string>& files, const Tokenizer& tokenizer, int threads,
                        const std::function<void(std::span<const int32_t>, bool)>& f) {
  const DocumentTokens& around = tokenizer.document_tokens();
  size_t n = threads > 0 ? size_t(threads) : std::max(1u, std::thread::hardware_concurrency());
  std::vector<Encoder> encoders;
  for (size_t i = 0; i < n; ++i) encoders.emplace_back(tokenizer);
  struct Part {
    std::string text;
    bool first, last;  // of its document
  };
  std::vector<Part> parts;
  size_t bytes = 0;
  auto encode = [&] {
    std::vector<std::vector<int32_t>> ids(parts.size());
    std::vector<std::exception_ptr> errors(n);
    std::atomic<size_t> next{0};
    auto work = [&](size_t thread) {
      try {
        for (size_t i; (i = next++) < parts.size();) {
          if (parts[i].first && around.begin) ids[i].push_back(*around.begin);
          encoders[thread].append(parts[i].text, ids[i]);
          if (parts[i].last && around.end) ids[i].push_back(*around.end);
        }
      } catch (...) {
        errors[thread] = std::current_exception();
      }
    };
    {
      std::vector<std::jthread> others;
      for (size_t t = 1; t < std::min(n, parts.size()); ++t) others.emplace_back(work, t);
      work(0);
    }
    for (const auto& e : errors)
      if (e) std::rethrow_exception(e);
    for (size_t i = 0; i < parts.size(); ++i) f(ids[i], parts[i].last);
    parts.clear();
    bytes = 0;
  };
  constexpr size_t part = size_t(1) << 20;
  for (const std::string& file : files)
    for_documents(file, [&](std::string_view text) {
      for (bool first = true, last = false; !last; first = false) {
        size_t size = text.size() <= part ? text.size() : tokenizer.cut(text, part);
        last = size == text.size();
        parts.push_back({std::string(text.substr(0, size)), first, last});
        text.remove_prefix(size);
        bytes += size;
        if (bytes >= 16 * part) encode();
      }
    });
  if (!parts.empty()) encode();
}

}  // namespace dtensor::nn
