#include "nn/checkpoint/checkpoint.h"

#include <charconv>
#include <set>

#include "dtensor/agree.h"
#include "nn/checkpoint/contents.h"
#include "nn/checkpoint/crc32c.h"
#include "nn/checkpoint/pieces.h"
#include "nn/json.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

std::optional<DType> dtype_named(std::string_view text) {
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    if (name(t) == text) return t;
  return {};
}

// Indices of `box` counted from where `whole` begins.
Box within(const Box& box, const Box& whole) {
  Box b = box;
  for (int d = 0; d < box.dims; ++d) b[d] = {box[d].begin - whole[d].begin, box[d].end - whole[d].begin};
  return b;
}

// Sizes that a tensor of such elements can have, or nothing.
std::optional<Shape> shape_of(const Json& sizes, int64_t itemsize) {
  if (!sizes.is_array() || sizes.size() > size_t(max_dims)) return {};
  Shape shape;
  for (const Json& n : sizes) {
    if (!n.is_number_unsigned() || n.get<uint64_t>() > uint64_t(INT64_MAX)) return {};
    shape.push_back(n.get<int64_t>());
  }
  return countable_bytes(shape, itemsize) ? std::optional(shape) : std::nullopt;
}

std::vector<std::string> keys_of(const Json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.push_back(key);
  return keys;
}

}  // namespace

CheckpointContents contents_of(const CheckpointItems& items) {
  CheckpointContents contents;
  std::set<std::string> names;
  auto claim = [&](const std::string& name) {
    check(!name.empty(), "[checkpoint] a key is empty");
    check(names.insert(name).second, "[checkpoint] two things are saved under \"{}\"", name);
  };
  auto add = [&](const std::string& name, const DistributedTensor& x) {
    claim(name);
    check_defined("checkpoint", x);
    contents.tensors.emplace_back(name, x);
  };
  for (const CheckpointItem& item : items) {
    if (const auto* x = std::get_if<DistributedTensor>(&item.what)) {
      add(item.key, *x);
      continue;
    }
    claim(item.key);
    if (const auto* module = std::get_if<Module*>(&item.what))
      for (Parameter* p : (*module)->parameters()) add(item.key + "." + p->path(), p->stored());
    else if (const auto* optimizer = std::get_if<Optimizer*>(&item.what)) {
      contents.values[item.key] = {{"steps", (*optimizer)->steps()}};
      for (const Optimizer::State& s : (*optimizer)->state()) add(item.key + "." + s.path(), s.tensor);
    } else {
      contents.values[item.key] = std::get<Json>(item.what);
    }
  }
  return contents;
}

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  try {
    read_index();
    check_files();
  } catch (const nlohmann::json::exception& e) {
    fail_with(fmt::format("checkpoint.json is not as it was written: {}", e.what()));
  }
}

void Checkpoint::fail_with(const std::string& what) const { fail("[checkpoint] {}: {}", folder_.string(), what); }

void Checkpoint::read_index() {
  fs::path file = folder_ / "checkpoint.json";
  if (!fs::exists(file)) fail_with("no checkpoint: there is no checkpoint.json");
  Json index = load_json(file.string(), "checkpoint");
  if (!index.is_object() || index.value("format", Json()) != checkpoint_format)
    fail_with(fmt::format("checkpoint.json is not of the format \"{}\"", checkpoint_format));
  std::string written = index.at("crc32c");
  index.erase("crc32c");
  std::string text = index.dump();
  if (written != fmt::format("{:08x}", crc32c(std::as_bytes(std::span(text)))))
    fail_with("checkpoint.json is not as it was written: its checksum differs");
  mesh_ = index.at("mesh");
  values_ = std::move(index.at("values"));
  for (const auto& [name, tensor] : index.at("tensors").items()) read_tensor(name, tensor);
}

void Checkpoint::read_tensor(const std::string& name, const Json& json) {
  StoredTensor t;
  std::optional<DType> dtype = dtype_named(json.at("dtype").get<std::string>());
  if (!dtype) fail_with(fmt::format("{} has the unknown element type {}", name, json.at("dtype").dump()));
  t.dtype = *dtype;
  std::optional<Shape> shape = shape_of(json.at("shape"), itemsize(t.dtype));
  if (!shape) fail_with(fmt::format("{} has the shape {}, which no tensor has", name, json.at("shape").dump()));
  t.shape = *shape;
  std::vector<Box> boxes;
  for (const Json& p : json.at("pieces")) {
    StoredPiece piece{p.at("file"), {}, 0};
    const std::string& sum = p.at("crc32c").get_ref<const std::string&>();
    auto [end, error] = std::from_chars(sum.data(), sum.data() + sum.size(), piece.checksum, 16);
    if (error != std::errc() || end != sum.data() + sum.size())
      fail_with(fmt::format("{} has the checksum {}", name, p.at("crc32c").dump()));
    for (const Json& range : p.at("box")) {
      if (piece.box.dims == max_dims || !range.at(0).is_number_integer() || !range.at(1).is_number_integer())
        fail_with(fmt::format("{} has the box {}, which no tensor has", name, p.at("box").dump()));
      piece.box[piece.box.dims++] = {range.at(0).get<int64_t>(), range.at(1).get<int64_t>()};
    }
    boxes.push_back(piece.box);
    t.pieces.push_back(std::move(piece));
  }
  if (std::string wrong = why_no_tiling(t.shape, boxes); !wrong.empty())
    fail_with(fmt::format("the pieces of {} do not tile {}: {}", name, to_string(t.shape), wrong));
  tensors_.emplace(name, std::move(t));
}

// Every piece is in its file, of its size.
void Checkpoint::check_files() {
  for (const auto& [name, tensor] : tensors_)
    for (const StoredPiece& piece : tensor.pieces) {
      auto file = files_.find(piece.file);
      if (file == files_.end()) {
        if (fs::path(piece.file).filename() != piece.file) fail_with(fmt::format("{} is in {}", name, piece.file));
        if (!fs::exists(folder_ / piece.file)) fail_with(fmt::format("{} is missing", piece.file));
        file = files_.emplace(piece.file, SafetensorsFile(folder_ / piece.file)).first;
      }
      auto entry = file->second.entries().find(name);
      if (entry == file->second.entries().end() || entry->second.shape != piece.box.shape() ||
          safetensors_dtype(entry->second.dtype, name) != tensor.dtype)
        fail_with(fmt::format("{} has not the piece of {} that checkpoint.json says", piece.file, name));
    }
}

const Json& Checkpoint::value(const std::string& key) const {
  if (!values_.contains(key))
    fail_with(fmt::format("there is no value \"{}\"{}", key, nearest_hint(key, keys_of(values_))));
  return values_.at(key);
}

int64_t Checkpoint::bytes() const {
  int64_t all = 0;
  for (const auto& [name, t] : tensors_) all += numel(t.shape) * itemsize(t.dtype);
  return all;
}

void Checkpoint::verify_piece(const std::string& name, const StoredPiece& piece) const {
  if (crc32c(files_.at(piece.file).entries().at(name).bytes) != piece.checksum)
    fail_with(fmt::format("{} is damaged: the checksum of {} differs", piece.file, name));
}

void Checkpoint::verify() const {
  for (const auto& [name, tensor] : tensors_)
    for (const StoredPiece& piece : tensor.pieces) verify_piece(name, piece);
}

void Checkpoint::verify(const DeviceMesh& mesh) const {
  agree_on_error(mesh, [&] {
    int64_t i = 0;
    for (const auto& [name, tensor] : tensors_)
      for (const StoredPiece& piece : tensor.pieces)
        if (i++ % mesh.size() == mesh.rank()) verify_piece(name, piece);
  });
}

const Checkpoint::StoredTensor& Checkpoint::find(const std::string& name) const {
  auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [n, t] : tensors_) names.push_back(n);
  fail_with(fmt::format("there is no tensor \"{}\"{}", name, nearest_hint(name, names)));
}

void Checkpoint::read(const std::string& name, const Box& box, const Tensor& to) const {
  const StoredTensor& t = find(name);
  if (t.dtype != to.dtype())
    fail_with(fmt::format("{} is {}, but {} is wanted", name, dtensor::name(t.dtype), dtensor::name(to.dtype())));
  for (const StoredPiece& piece : t.pieces) {
    Box common = intersection(piece.box, box);
    if (common.numel() <= 0) continue;
    const SafetensorsEntry& e = files_.at(piece.file).entries().at(name);
    Tensor target = to.part(within(common, box));
    bool whole_rows = target.is_contiguous();
    Tensor rows = whole_rows ? target : Tensor(std::make_shared<Allocator>(), t.dtype, common.shape());
    read_range(e, within(common, piece.box), rows, name);
    if (!whole_rows) copy(rows, target);
  }
}

Tensor Checkpoint::read(const std::string& name) const {
  const StoredTensor& stored = find(name);
  Tensor t(std::make_shared<Allocator>(), stored.dtype, stored.shape);
  read(name, whole_box(stored.shape), t);
  return t;
}

void Checkpoint::load_part(const std::string& name, DistributedTensor& to) const {
  const StoredTensor& t = find(name);
  if (t.shape != to.shape() || t.dtype != to.dtype())
    fail_with(fmt::format("{} is {}{}, but {} is to be loaded", name, dtensor::name(t.dtype), to_string(t.shape),
                          to_string(to)));
  if (to.layout().partial) fail_with(fmt::format("{} is to be loaded into {}, which is Partial", name, to_string(to)));
  if (to.is_meta()) return;
  write_on_host(to.local_for_writing(), [&](const Tensor& part) { read(name, to.spec().box, part); });
}

void Checkpoint::load(const CheckpointItems& items) const {
  CheckpointContents wanted = contents_of(items);
  auto load_all = [&] {
    std::set<std::string> names;
    for (auto& [name, x] : wanted.tensors) load_part(name, x), names.insert(name);
    for (const CheckpointItem& item : items) {
      if (std::holds_alternative<Json>(item.what))
        fail_with(fmt::format("\"{}\" is a JSON value: read it with value()", item.key));
      if (std::holds_alternative<DistributedTensor>(item.what)) continue;
      std::string prefix = item.key + ".";
      for (auto it = tensors_.lower_bound(prefix); it != tensors_.end() && it->first.starts_with(prefix); ++it)
        if (!names.contains(it->first))
          fail_with(fmt::format("it has {}, which \"{}\" has not: is this another model's?", it->first, item.key));
      if (auto* optimizer = std::get_if<Optimizer*>(&item.what))
        (*optimizer)->set_steps(value(item.key).at("steps").get<int64_t>());
    }
  };
  if (wanted.tensors.empty())
    load_all();
  else
    agree_on_error(wanted.tensors[0].second.mesh(), load_all);
  for (const CheckpointItem& item : items)
    if (auto* module = std::get_if<Module*>(&item.what))
      for (Parameter* p : (*module)->parameters()) p->renew();
}

}  // namespace dtensor::nn
