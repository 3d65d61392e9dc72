// Checkpoints: named distributed tensors and JSON values in a folder, written once, loaded on any mesh.
//
//     save_checkpoint(mesh, "run/one", {{"model", model}, {"optimizer", adamw}, {"epoch", 3}, {"loss", 2.5}});
//
//     Checkpoint c("run/one");
//     c.load({{"model", model}, {"optimizer", adamw}});
//     int epoch = c.value("epoch");
//
// A folder has one file per rank, rank-00000.safetensors, with the pieces that this rank owns, and checkpoint.json: the
// values, and of every tensor its type, shape and pieces, each with its box of global indices and its checksum. It is
// written under another name, synced and renamed, so that a folder of its name is whole.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <variant>

#include "nn/checkpoint/safetensors.h"
#include "nn/train/optimizer.h"

namespace dtensor::nn {

// Something under its key. Of a module these are its parameters as stored, "key.PATH"; of an optimizer its states,
// "key.exp_avg.PATH", and the value "key", {"steps": N}.
struct CheckpointItem {
  CheckpointItem(std::string k, DistributedTensor x) : key(std::move(k)), what(std::move(x)) {}
  CheckpointItem(std::string k, Module& m) : key(std::move(k)), what(&m) {}
  CheckpointItem(std::string k, Optimizer& o) : key(std::move(k)), what(&o) {}
  CheckpointItem(std::string k, nlohmann::ordered_json value) : key(std::move(k)), what(std::move(value)) {}

  std::string key;
  std::variant<DistributedTensor, Module*, Optimizer*, nlohmann::ordered_json> what;
};
using CheckpointItems = std::vector<CheckpointItem>;

// One that was written.
class Checkpoint {
 public:
  // Reads the index and looks at the files. Errors: no checkpoint; an index that was changed; pieces that do not tile
  // their tensors; a file that is missing, cut off or not what the index says.
  explicit Checkpoint(const std::filesystem::path& folder);

  struct StoredPiece {
    std::string file;
    Box box;
    uint32_t checksum;
  };
  struct StoredTensor {
    DType dtype;
    Shape shape;
    std::vector<StoredPiece> pieces;
  };
  const std::filesystem::path& folder() const { return folder_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const nlohmann::ordered_json& values() const { return values_; }
  // Errors: there is none under this key.
  const nlohmann::ordered_json& value(const std::string& key) const;
  std::string mesh() const { return mesh_; }  // that wrote it: "dp=2,tp=2"
  int64_t bytes() const;                      // of all pieces

  // Reads every byte and compares the checksums. With a mesh, whose ranks call it together, each reads its share.
  // Errors, on all ranks: a piece whose bytes are not those that were written.
  void verify() const;
  void verify(const DeviceMesh& mesh) const;

  // Writes tensors, modules and optimizers in place, each rank its part, of which it reads no more than it needs, from
  // pieces cut in any way. The ranks call it together. It does not verify(). Errors, on all ranks: a tensor that is not
  // there, or has another type or shape, or that is there and nobody wants: a parameter that the module has not; an
  // item that is a JSON value.
  void load(const CheckpointItems& items) const;
  // What the box of a tensor holds, into a contiguous host tensor of its type. Errors: no such tensor; another type.
  void read(const std::string& name, const Box& box, const Tensor& to) const;
  Tensor read(const std::string& name) const;

 private:
  [[noreturn]] void fail_with(const std::string& what) const;
  const StoredTensor& find(const std::string& name) const;
  void read_index();
  void read_tensor(const std::string& name, const nlohmann::ordered_json& json);
  void check_files();
  void verify_piece(const std::string& name, const StoredPiece& piece) const;
  void load_part(const std::string& name, DistributedTensor& to) const;

  std::filesystem::path folder_;
  std::string mesh_;
  nlohmann::ordered_json values_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, SafetensorsFile> files_;
};

struct CheckpointContents;

// Writes checkpoints beside training: begin() copies what this rank owns to the host and returns, threads write. A
// Writer belongs to a rank; all ranks of the mesh make one and call its functions together. One that is destroyed gives
// up what is not whole yet: wait() first.
class CheckpointWriter {
 public:
  explicit CheckpointWriter(const DeviceMesh& mesh) : mesh_(mesh) {}
  CheckpointWriter(const CheckpointWriter&) = delete;
  ~CheckpointWriter();

  // Waits for the one begun before. Replaces a checkpoint of that name, as a whole, when the new one is whole. The
  // folder must be one that all ranks see. Errors, on all ranks: a folder that cannot be made; a Partial or meta
  // tensor, another mesh; two things under one key; those of wait().
  void begin(const std::filesystem::path& folder, const CheckpointItems& items);

  struct Written {
    std::filesystem::path folder;
    double stalled_seconds;  // that begin() took
    double written_seconds;  // from then until it was whole, as rank 0 saw it
    int64_t bytes;           // of all ranks
  };
  // When the one begun last is whole on the disk; nothing where none was begun since the last wait(). Errors, on all
  // ranks: it could not be written; others are as they were.
  std::optional<Written> wait();
  // Whether a wait() would be short, as far as this rank knows.
  bool is_done() const;
  // Called on rank 0's writing thread after each checkpoint that is whole.
  std::function<void()> after;

 private:
  struct Job;
  std::shared_ptr<Job> prepare(const std::filesystem::path& folder, const CheckpointContents& contents);
  void copy_pieces(Job& job, const CheckpointContents& contents);

  DeviceMesh mesh_;
  std::vector<Tensor> buffers_;  // on the host, kept for the next time
  std::shared_ptr<Job> running_;
  std::thread thread_;
};

// Writes one and waits until it is whole.
CheckpointWriter::Written save_checkpoint(const DeviceMesh& mesh, const std::filesystem::path& folder,
                                          const CheckpointItems& items);

}  // namespace dtensor::nn
