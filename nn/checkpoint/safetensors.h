// Safetensors: named tensors in one file, or in several under an index, as Hugging Face's folders have them.
// Source: github.com/huggingface/safetensors, "Format".
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "dtensor/distributed_tensor.h"
#include "nn/file.h"

namespace dtensor::nn {

// What a file says of one tensor, its values aside.
struct SafetensorsEntry {
  std::string dtype;  // as the format spells it: "F32", "BF16"
  Shape shape;
  std::span<const std::byte> bytes;  // row-major
};

// Reads what the box of a tensor holds into `to`, contiguous and on the host, of the box's shape. Only these ranges
// come from the disk. Floating types are converted (F16, BF16, F32 and F64 to f32, bf16 and f64); others must be
// `to`'s. Errors: a type that cannot be converted; `name` says whose.
void read_range(const SafetensorsEntry& entry, const Box& box, const Tensor& to, std::string_view name);

// One file. It is checked when it is opened: a header that does not describe the file exactly is an error, as are
// overlapping tensors, gaps, sizes that overflow, and duplicate names.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void read_header(std::string_view text, std::span<const std::byte> data);
  MappedFile file_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

// The tensors of a .safetensors file, of a .safetensors.index.json and the files it names, or of a folder that has
// model.safetensors or model.safetensors.index.json.
class Safetensors {
 public:
  // Errors: those of the files; an index that does not name the tensors of its files exactly, or a file elsewhere.
  explicit Safetensors(const std::filesystem::path& path);

  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return entries_.contains(name); }
  // Errors: there is none of that name.
  const SafetensorsEntry& entry(const std::string& name) const;
  void read(const std::string& name, const Box& box, const Tensor& to) const { read_range(entry(name), box, to, name); }
  // A whole tensor, in its own type. Errors: a type that we have not.
  Tensor read(const std::string& name) const;
  // Each rank's part of a tensor of the same shape is read into it, in place. Errors: another shape.
  void read(const std::string& name, DistributedTensor& to) const;

 private:
  std::filesystem::path path_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::pair<const SafetensorsFile*, const SafetensorsEntry*>> entries_;
};

// The type of ours that the format's name stands for. Errors: there is none; `what` names the tensor.
DType safetensors_dtype(const std::string& dtype, std::string_view what);

// A tensor to write.
struct NamedSpec {
  std::string name;
  DType dtype;
  Shape shape;
};

// Writes one file: the header, then the tensors in the order of the list. `values(i)` gives tensor i, contiguous, on
// the host, so that one at a time needs memory. It is whole under its name, or not there. Errors: two tensors of one
// name; a value of another type or shape; a disk that is full.
void save_safetensors(const std::filesystem::path& file, const std::vector<NamedSpec>& tensors,
                      const std::function<Tensor(size_t)>& values,
                      const std::map<std::string, std::string>& metadata = {});
// The same into a folder: model.safetensors, or, where there are more than `most_bytes`,
// model-00001-of-00003.safetensors and so on with model.safetensors.index.json.
void save_safetensors_folder(const std::filesystem::path& folder, const std::vector<NamedSpec>& tensors,
                             const std::function<Tensor(size_t)>& values, int64_t most_bytes = int64_t(5) << 30);

// The header of a file with these tensors, with its length before it.
std::string safetensors_header(const std::vector<NamedSpec>& tensors,
                               const std::map<std::string, std::string>& metadata);

}  // namespace dtensor::nn
