// Ten thousand mutations of each kind of file that a checkpoint or a folder of weights has: read as what they say, or
// rejected with a message of ours, whatever they are. The address sanitizer (preset asan) sees the rest.
#include "nn/checkpoint/checkpoint.h"
#include "nn/checkpoint/crc32c.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;
namespace fs = std::filesystem;

namespace {

constexpr int mutations = 10000;

class Mutator {
 public:
  size_t next(size_t n) { return state_ = state_ * 6364136223846793005u + 1442695040888963407u, (state_ >> 33) % n; }

  // One to three changes: a byte becomes any other or one that stands elsewhere, some are cut out, put in, or copied
  // from elsewhere; or the end is cut off.
  std::string operator()(std::string text) {
    for (size_t changes = 1 + next(3); changes > 0 && !text.empty(); --changes) {
      size_t at = next(text.size()), from = next(text.size()), n = 1 + next(9);
      switch (next(6)) {
        case 0:
          text[at] = char(next(256));
          break;
        case 1:
          text[at] = text[from];
          break;
        case 2:
          text.erase(at, n);
          break;
        case 3:
          text.insert(at, n, "0129-[]{},:\"x"[next(13)]);
          break;
        case 4:
          text.insert(at, text.substr(from, 4 * n));
          break;
        default:
          if (next(8) == 0) text.resize(at);
      }
    }
    return text;
  }

 private:
  uint64_t state_ = 1;
};

// Reads `file` in each of its mutations. What is rejected says so with one of the beginnings of `who`.
void mutate(const fs::path& file, const std::vector<std::string>& who, const std::function<void()>& read,
            const std::function<std::string(const std::string&)>& repair = {}) {
  const std::string good = read_file(file);
  read();
  Mutator mutator;
  int rejected = 0, others = 0;
  for (int i = 0; i < mutations; ++i) {
    std::string bad = mutator(good);
    std::ofstream(file, std::ios::binary) << (repair ? repair(bad) : bad);
    try {
      read();
    } catch (const Error& e) {
      ++rejected;
      bool ours = std::any_of(who.begin(), who.end(),
                              [&](const std::string& w) { return std::string_view(e.what()).starts_with(w); });
      if (!ours && ++others <= 10) UNSCOPED_INFO(e.what());
    }
  }
  CHECK(others == 0);
  CHECK(rejected > mutations / 3);
  CHECK(rejected < mutations);  // some change nothing that is told
  std::ofstream(file, std::ios::binary) << good;
}

// Three tensors of three types in `folder`, as one file or as three and their index.
void save_weights(const fs::path& folder, int64_t most_bytes) {
  std::vector<float> v{0, 1, 2, 3};
  std::vector<NamedSpec> specs = {{"a", DType::f32, {3, 5}}, {"b", DType::bf16, {4}}, {"c", DType::boolean, {2}}};
  save_safetensors_folder(
      folder, specs,
      [&](size_t i) {
        if (i == 0) return f32({3, 5}, 1);
        if (i == 1) return Tensor::of<BFloat16>({4}, std::vector<BFloat16>(v.begin(), v.end()));
        return Tensor::of<bool>({2}, {true, false});
      },
      most_bytes);
}

void read_weights(const fs::path& folder) {
  Safetensors s(folder);
  for (const std::string& name : s.names()) s.read(name);
}

// The text with the checksum that it should have, where it is an object: what is wrong is then for the reader to find.
std::string with_checksum(const std::string& text) {
  auto index = nlohmann::ordered_json::parse(text, nullptr, false);
  if (!index.is_object()) return text;
  index.erase("crc32c");
  std::string plain = index.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  index["crc32c"] = fmt::format("{:08x}", crc32c(std::as_bytes(std::span(plain))));
  return index.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

TEST_CASE("mutated safetensors files are read or rejected with a message", "[nightly]") {
  Folder folder;
  save_weights(folder.path, 1 << 20);
  mutate(folder.path / "model.safetensors", {"[safetensors] "}, [&] { read_weights(folder.path); });
}

TEST_CASE("mutated indices of safetensors are read or rejected with a message", "[nightly]") {
  Folder folder;
  save_weights(folder.path, 1);
  mutate(folder.path / "model.safetensors.index.json", {"[safetensors] "}, [&] { read_weights(folder.path); });
}

TEST_CASE("mutated indices of checkpoints are read or rejected with a message", "[nightly]") {
  Folder folder;
  on_mesh("x=2", [&](const DeviceMesh& m) {
    DistributedTensor x = DistributedTensor::distribute(f32({6, 8}, 1), m, {Shard(0)}),
                      y = DistributedTensor::distribute(f64({}, 5), m, {});
    save_checkpoint(m, folder.path / "c", {{"x", x}, {"y", y}, {"epoch", 3}});
  });
  auto read = [&] {
    Checkpoint c(folder.path / "c");
    c.verify();
    for (const auto& [name, tensor] : c.tensors()) c.read(name);
  };
  mutate(folder.path / "c" / "checkpoint.json", {"[checkpoint] ", "[safetensors] "}, read, with_checksum);
}
