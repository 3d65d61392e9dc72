// What the tests of tokenizers and data share.
#pragma once

#include <zlib.h>
#include <zstd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "tests/errors.h"
#include "tests/folder.h"

namespace dtensor::testing {

using Catch::Contains;
using Catch::EndsWith;
using Catch::StartsWith;
using Json = nlohmann::ordered_json;

// Bytes as they are in memory.
template <class... T>
std::string raw(T... values) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  return bytes;
}

inline std::string gzip(const std::string& text) {
  Folder folder;
  gzFile file = gzopen((folder / "a.gz").c_str(), "wb");
  gzwrite(file, text.data(), unsigned(text.size()));
  gzclose(file);
  return read_file(folder / "a.gz");
}

inline std::string zstd(const std::string& text) {
  std::string bytes(ZSTD_compressBound(text.size()), '\0');
  bytes.resize(ZSTD_compress(bytes.data(), bytes.size(), text.data(), text.size(), 1));
  return bytes;
}

inline std::string reference_file(const std::string& name) {
  return std::string(DTENSOR_SOURCE_DIR) + "/tests/data/reference/" + name;
}
inline Json reference_json(const std::string& name) { return Json::parse(read_file(reference_file(name))); }

}  // namespace dtensor::testing
