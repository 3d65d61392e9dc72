#include "nn/checkpoint/safetensors.h"

#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "dtensor/local/runs.h"
#include "nn/checkpoint/pieces.h"
#include "nn/json.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

static_assert(std::endian::native == std::endian::little, "elements are written as they are in memory");

struct Type {
  std::string_view name;
  int64_t bytes;
};
constexpr Type types[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1},
                          {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},
                          {"I32", 4},  {"F32", 4}, {"U64", 8}, {"I64", 8},     {"F64", 8}};

std::string_view format_name(DType t) {
  switch (t) {
    case DType::f32:
      return "F32";
    case DType::f64:
      return "F64";
    case DType::bf16:
      return "BF16";
    case DType::i64:
      return "I64";
    case DType::boolean:
      return "BOOL";
  }
  return "";
}

constexpr int64_t longest_header = 100'000'000;  // the format's own limit

// IEEE's half precision.
float of_half(uint16_t h) {
  uint32_t exponent = h >> 10 & 31, fraction = h & 1023, sign = uint32_t(h & 0x8000) << 16;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | fraction << 13);
  if (exponent == 0) {  // a multiple of 2^-24, exact in a float
    float tiny = float(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(tiny));
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

double widen(std::string_view dtype, const std::byte* p) {
  auto load = [p]<class T>(T value) {
    std::memcpy(&value, p, sizeof value);  // nothing says that the file's data are aligned
    return value;
  };
  if (dtype == "F32") return double(load(float()));
  if (dtype == "F64") return load(double());
  if (dtype == "F16") return double(of_half(load(uint16_t())));
  return double(float(load(BFloat16())));
}

// n elements of a floating type at `from` become elements of `to`'s type from element `at` on.
void convert(std::string_view dtype, int64_t size, const std::byte* from, int64_t n, const Tensor& to, int64_t at) {
  auto into = [&]<class T>(T* out) {
    for (int64_t i = 0; i < n; ++i) {
      double value = widen(dtype, from + i * size);
      if constexpr (std::is_same_v<T, double>)
        out[i] = value;
      else
        out[i] = T(float(value));
    }
  };
  if (to.dtype() == DType::f32) return into(to.data<float>() + at);
  if (to.dtype() == DType::f64) return into(to.data<double>() + at);
  into(to.data<BFloat16>() + at);
}

int64_t size_of(std::string_view dtype) {
  auto found = std::find_if(std::begin(types), std::end(types), [&](const Type& t) { return t.name == dtype; });
  return found == std::end(types) ? 0 : found->bytes;
}

// What is wrong with one entry of a header, or "".
std::string parse_entry(const Json& json, std::span<const std::byte> data, SafetensorsEntry& entry) {
  auto is_count = [](const Json& n) { return n.is_number_unsigned() && n.get<uint64_t>() <= uint64_t(INT64_MAX); };
  if (!json.is_object()) return "is no object";
  for (const auto& [key, value] : json.items())
    if (key != "dtype" && key != "shape" && key != "data_offsets") return fmt::format("has a field \"{}\"", key);
  if (!json.contains("dtype") || !json["dtype"].is_string()) return "has no \"dtype\"";
  entry.dtype = json["dtype"].get<std::string>();
  int64_t bytes = size_of(entry.dtype);
  if (bytes == 0) return fmt::format("has an unknown dtype {}", json["dtype"].dump());
  if (!json.contains("shape") || !json["shape"].is_array()) return "has no \"shape\"";
  if (json["shape"].size() > size_t(max_dims))
    return fmt::format("has {} dimensions, and at most {} are supported", json["shape"].size(), max_dims);
  for (const Json& n : json["shape"]) {
    if (!is_count(n)) return fmt::format("has a size {}", n.dump());
    entry.shape.push_back(n.get<int64_t>());
  }
  std::optional<int64_t> counted = countable_bytes(entry.shape, bytes);
  if (!counted) return "has more bytes than there can be";
  bytes = *counted;
  const Json* at = json.contains("data_offsets") ? &json["data_offsets"] : nullptr;
  if (!at || !at->is_array() || at->size() != 2 || !is_count((*at)[0]) || !is_count((*at)[1]))
    return "has no two \"data_offsets\"";
  int64_t begin = (*at)[0].get<int64_t>(), end = (*at)[1].get<int64_t>();
  if (begin > end || uint64_t(end) > data.size())
    return fmt::format("is at bytes {} to {} of {}", begin, end, data.size());
  if (end - begin != bytes)
    return fmt::format("is {}{} of {} bytes, but its data_offsets have {}", entry.dtype, to_string(entry.shape), bytes,
                       end - begin);
  entry.bytes = data.subspan(size_t(begin), size_t(bytes));
  return "";
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path) : file_(path, "safetensors") {
  std::span<const std::byte> bytes = file_.bytes();
  check(bytes.size() >= 8, "[safetensors] {}: {} bytes are too short for a safetensors file", path.string(),
        bytes.size());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  check(length <= uint64_t(longest_header) && length <= bytes.size() - 8,
        "[safetensors] {}: a header of {} bytes in a file of {}: truncated, or no safetensors file", path.string(),
        length, bytes.size());
  read_header({reinterpret_cast<const char*>(bytes.data()) + 8, size_t(length)}, bytes.subspan(8 + size_t(length)));
}

void SafetensorsFile::read_header(std::string_view text, std::span<const std::byte> data) {
  std::string name = path().string();
  Json header = parse_json(text, name, "safetensors");
  check(header.is_object(), "[safetensors] {}: the header is no object", name);
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      bool texts = value.is_object() && std::all_of(value.begin(), value.end(), [](auto& v) { return v.is_string(); });
      check(texts, "[safetensors] {}: \"__metadata__\" is not an object of strings", name);
      for (const auto& [k, v] : value.items()) metadata_[k] = v.template get<std::string>();
      continue;
    }
    SafetensorsEntry entry;
    std::string wrong = parse_entry(value, data, entry);
    check(wrong.empty(), "[safetensors] {}: the tensor \"{}\" {}", name, key, wrong);
    entries_.emplace(key, std::move(entry));
  }
  std::vector<std::span<const std::byte>> parts;
  for (const auto& [key, entry] : entries_) parts.push_back(entry.bytes);
  std::sort(parts.begin(), parts.end(),
            [](auto& a, auto& b) { return std::pair(a.data(), a.size()) < std::pair(b.data(), b.size()); });
  const std::byte* at = data.data();
  for (auto& part : parts) {
    check(part.data() == at || part.empty(),
          "[safetensors] {}: the tensors' bytes overlap or leave a gap at byte {} of the data", name, at - data.data());
    at = std::max(at, part.data() + part.size());
  }
  check(at == data.data() + data.size(), "[safetensors] {}: the tensors end at byte {}, but there are {}", name,
        at - data.data(), data.size());
}

Safetensors::Safetensors(const fs::path& path) : path_(path) {
  fs::path file = path;
  if (fs::is_directory(path)) {
    file = path / "model.safetensors";
    if (!fs::exists(file)) file = path / "model.safetensors.index.json";
    check(fs::exists(file), "[safetensors] {} has neither model.safetensors nor model.safetensors.index.json",
          path.string());
  }
  std::map<std::string, std::string> file_of;  // by tensor
  std::set<std::string> names;
  bool indexed = file.extension() == ".json";
  if (!indexed) names.insert(file.filename().string());
  if (indexed) {
    Json index = load_json(file.string(), "safetensors");
    check(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
          "[safetensors] {} has no \"weight_map\" from tensors to files", file.string());
    for (const auto& [tensor, in] : index["weight_map"].items()) {
      check(in.is_string() && !in.get_ref<const std::string&>().empty() &&
                fs::path(in.get_ref<const std::string&>()).filename() == in.get_ref<const std::string&>(),
            "[safetensors] {}: the tensor \"{}\" is in {}, which is no file beside it", file.string(), tensor,
            in.dump());
      file_of[tensor] = *names.insert(in.get<std::string>()).first;
    }
  }
  files_.reserve(names.size());
  for (const std::string& name : names) {
    const SafetensorsFile& f = files_.emplace_back(file.parent_path() / name);
    for (const auto& [tensor, entry] : f.entries()) {
      check(!indexed || (file_of.contains(tensor) && file_of[tensor] == name),
            "[safetensors] {} does not say that {} has the tensor \"{}\"", file.string(), name, tensor);
      entries_.emplace(tensor, std::pair(&f, &entry));
    }
  }
  for (const auto& [tensor, in] : file_of)
    check(entries_.contains(tensor), "[safetensors] {} says that {} has the tensor \"{}\", but it has not",
          file.string(), in, tensor);
}

std::vector<std::string> Safetensors::names() const {
  std::vector<std::string> list;
  for (const auto& [name, entry] : entries_) list.push_back(name);
  return list;
}

const SafetensorsEntry& Safetensors::entry(const std::string& name) const {
  auto found = entries_.find(name);
  if (found == entries_.end())
    fail("[safetensors] {} has no tensor \"{}\"{}", path_.string(), name, nearest_hint(name, names()));
  return *found->second.second;
}

DType safetensors_dtype(const std::string& dtype, std::string_view what) {
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    if (format_name(t) == dtype) return t;
  if (dtype == "F16") return DType::f32;  // all of its values, and there is no half precision here
  fail("[safetensors] {} has elements {}, which are not supported: F32, F64, F16, BF16, I64 and BOOL are", what, dtype);
}

void read_range(const SafetensorsEntry& e, const Box& box, const Tensor& to, std::string_view name) {
  bool floating = is_floating(safetensors_dtype(e.dtype, name));
  bool same = e.dtype == format_name(to.dtype());
  check(same || (floating && is_floating(to.dtype())), "[safetensors] {} has elements {}, which do not convert to {}",
        name, e.dtype, dtensor::name(to.dtype()));
  int64_t size = size_of(e.dtype);
  for_each_run(e.shape, box, [&](int64_t local, int64_t global, int64_t n) {
    const std::byte* from = e.bytes.data() + global * size;
    if (same)
      std::memcpy(to.bytes_data() + local * size, from, size_t(n * size));
    else
      convert(e.dtype, size, from, n, to, local);
  });
  if (to.dtype() == DType::boolean)  // any other byte in a bool is undefined behaviour
    check(std::all_of(to.bytes_data(), to.bytes_data() + to.bytes(), [](std::byte b) { return b <= std::byte(1); }),
          "[safetensors] {} has a bool that is neither 0 nor 1", name);
}

Tensor Safetensors::read(const std::string& name) const {
  const SafetensorsEntry& e = entry(name);
  Tensor t(std::make_shared<Allocator>(), safetensors_dtype(e.dtype, name), e.shape);
  read(name, whole_box(e.shape), t);
  return t;
}

void Safetensors::read(const std::string& name, DistributedTensor& to) const {
  const SafetensorsEntry& e = entry(name);
  if (e.shape != to.shape())
    fail("[safetensors] {} is {}{} in {}, but {} is wanted", name, e.dtype, to_string(e.shape), path_.string(),
         to_string(to));
  if (to.is_meta()) return;
  write_on_host(to.local_for_writing(), [&](const Tensor& part) { read(name, to.spec().box, part); });
}

std::string safetensors_header(const std::vector<NamedSpec>& tensors,
                               const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  std::set<std::string> names{"__metadata__"};
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t at = 0;
  for (const NamedSpec& t : tensors) {
    check(names.insert(t.name).second, "[save_safetensors] two tensors are called \"{}\"", t.name);
    int64_t bytes = numel(t.shape) * itemsize(t.dtype);
    header.push_back({t.name,
                      {{"dtype", format_name(t.dtype)},
                       {"shape", std::vector<int64_t>(t.shape.begin(), t.shape.end())},
                       {"data_offsets", {at, at + bytes}}}});
    at += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');  // the data are aligned
  auto length = std::bit_cast<std::array<char, 8>>(uint64_t(text.size()));
  return std::string(length.begin(), length.end()) + text;
}

void save_safetensors(const fs::path& file, const std::vector<NamedSpec>& tensors,
                      const std::function<Tensor(size_t)>& values, const std::map<std::string, std::string>& metadata) {
  fs::path beside = file;
  beside += ".tmp";
  NewFile out(beside, "save_safetensors");
  out.write(safetensors_header(tensors, metadata));
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor t = values(i);
    check(t.dtype() == tensors[i].dtype && t.shape() == tensors[i].shape && t.is_contiguous() &&
              t.device() == Device::cpu,
          "[save_safetensors] \"{}\" is {}{}, not {}{} on the host", tensors[i].name, name(t.dtype()), t.shape(),
          name(tensors[i].dtype), tensors[i].shape);
    out.write({t.bytes_data(), size_t(t.bytes())});
  }
  out.close();
  publish(beside, file, "save_safetensors");
}

void save_safetensors_folder(const fs::path& folder, const std::vector<NamedSpec>& tensors,
                             const std::function<Tensor(size_t)>& values, int64_t most_bytes) {
  std::vector<std::vector<size_t>> shards(1);
  int64_t total = 0, in_shard = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    int64_t bytes = numel(tensors[i].shape) * itemsize(tensors[i].dtype);
    if (!shards.back().empty() && in_shard + bytes > most_bytes) shards.emplace_back(), in_shard = 0;
    shards.back().push_back(i), in_shard += bytes, total += bytes;
  }
  Json map = Json::object();
  for (size_t s = 0; s < shards.size(); ++s) {
    std::string file = shards.size() == 1 ? "model.safetensors"
                                          : fmt::format("model-{:05}-of-{:05}.safetensors", s + 1, shards.size());
    std::vector<NamedSpec> part;
    for (size_t i : shards[s]) part.push_back(tensors[i]), map[tensors[i].name] = file;
    save_safetensors(folder / file, part, [&](size_t i) { return values(shards[s][i]); }, {{"format", "pt"}});
  }
  if (shards.size() == 1) return;
  fs::path beside = folder / "model.safetensors.index.json.tmp";
  NewFile out(beside, "save_safetensors");
  out.write(Json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n");
  out.close();
  publish(beside, folder / "model.safetensors.index.json", "save_safetensors");
}

}  // namespace dtensor::nn
