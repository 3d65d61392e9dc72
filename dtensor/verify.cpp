#include "dtensor/verify.h"

#include <bit>
#include <cstring>
#include <optional>

#include "dtensor/local/runs.h"
#include "dtensor/redistribute.h"

namespace dtensor {
namespace {

using Words = std::vector<int64_t>;

// `mine` of every rank of the mesh, in the order of ranks, as one recorded collective.
Words gather(const DeviceMesh& mesh, const Words& mine) {
  int64_t n = int64_t(mine.size());
  Rank& rank = mesh.rank_state();
  Tensor local(rank.allocator(), DType::i64, {1, n}, rank.device());
  bool meta = rank.device() == Device::meta;
  if (!meta) write_on_host(local, [&](const Tensor& t) { std::copy(mine.begin(), mine.end(), t.data<int64_t>()); });
  Layout rows;
  for (int a = 0; a < mesh.shape().axes(); ++a) rows = rows.with_innermost(a, 0);
  NoGrad scope(rank);
  Tensor all = DistributedTensor::from_local(local, mesh, rows, {mesh.size(), n})
                   .redistribute(Layout(), {.reason = "verify_replicas"})
                   .local()
                   .cpu();
  return meta ? Words() : Words(all.data<int64_t>(), all.data<int64_t>() + all.numel());
}

// For one word that differs both steps are invertible, so that a single difference always shows.
int64_t hash(const std::byte* at, int64_t bytes) {
  uint64_t h = uint64_t(bytes);
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, at + i, size_t(std::min<int64_t>(8, bytes - i)));
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
  }
  return int64_t(h);
}

AxisSet replicated(const DistributedTensor& x) {
  return x.mesh().shape().wide() & ~x.layout().sharded() & ~x.layout().partial;
}

// The first rank whose word is not that of the first of its group, which holds the same part.
std::optional<std::pair<int, int>> first_difference(const DistributedTensor& x, const Words& words, size_t stride,
                                                    size_t offset) {
  const MeshShape& mesh = x.mesh().shape();
  for (int r = 0; r < mesh.world(); ++r) {
    int first = mesh.group(r, replicated(x))[0];
    if (words[size_t(r) * stride + offset] != words[size_t(first) * stride + offset]) return std::pair(first, r);
  }
  return {};
}

// An element by its bits.
std::string show(DType t, int64_t bits) {
  std::string hex = fmt::format(" (0x{:0{}x})", uint64_t(bits), 2 * itemsize(t));
  switch (t) {
    case DType::f32:
      return fmt::format("{}", std::bit_cast<float>(uint32_t(bits))) + hex;
    case DType::bf16:
      return fmt::format("{}", std::bit_cast<float>(uint32_t(bits) << 16)) + hex;
    case DType::f64:
      return fmt::format("{}", std::bit_cast<double>(bits)) + hex;
    case DType::i64:
      return fmt::format("{}", bits);
    default:
      return bits ? "true" : "false";
  }
}

// Halves the part until one element is left whose hashes differ between two ranks. The others take part, so that all
// ranks fail alike.
[[noreturn]] void report(const DistributedTensor& x, const Tensor& part, std::string_view name, int a, int b) {
  Box box = local_box(x.mesh().shape(), x.shape(), x.layout(), a);
  int64_t item = itemsize(part.dtype()), here = part.numel(), begin = 0, end = box.numel();
  auto piece = [&](int64_t from, int64_t to) {  // of ranks with smaller parts, what they have of it
    from = std::min(from, here), to = std::min(to, here);
    return gather(x.mesh(), {hash(part.bytes_data() + from * item, (to - from) * item)});
  };
  while (end - begin > 1) {
    int64_t middle = begin + (end - begin) / 2;
    Words hashes = piece(begin, middle);
    (hashes[size_t(a)] != hashes[size_t(b)] ? end : begin) = middle;
  }
  int64_t bits = 0;
  if (begin < here) std::memcpy(&bits, part.bytes_data() + begin * item, size_t(item));
  Words values = gather(x.mesh(), {bits});
  fail("[verify_replicas] {}, {}: ranks {} and {} differ first at {}: {} and {}", name, to_string(x), a, b,
       to_string(global_index(box, begin)), show(part.dtype(), values[size_t(a)]),
       show(part.dtype(), values[size_t(b)]));
}

}  // namespace

void verify_replicas(std::span<const DistributedTensor> list, std::span<const std::string> names) {
  check(list.size() == names.size(), "[verify_replicas] {} tensors and {} names", list.size(), names.size());
  std::vector<size_t> copied;  // those that have replicas
  std::vector<Tensor> parts;
  Words hashes;
  for (size_t i = 0; i < list.size(); ++i) {
    const DistributedTensor& x = list[i];
    check(x.defined(), "[verify_replicas] {} is undefined", names[i]);
    if (!(x.mesh() == list[0].mesh()))
      fail("[verify_replicas] {} and {} are on two meshes: {}", names[0], names[i],
           difference(list[0].mesh(), x.mesh()));
    if (!replicated(x)) continue;
    copied.push_back(i);
    parts.push_back(x.local().contiguous().cpu());
    hashes.push_back(x.is_meta() ? 0 : hash(parts.back().bytes_data(), parts.back().bytes()));
  }
  if (copied.empty()) return;
  const DeviceMesh& mesh = list[0].mesh();
  Words all = gather(mesh, hashes);
  if (all.empty()) return;  // a dry run
  for (size_t k = 0; k < copied.size(); ++k)
    if (auto ranks = first_difference(list[copied[k]], all, copied.size(), k))
      report(list[copied[k]], parts[k], names[copied[k]], ranks->first, ranks->second);
}

void verify_replicas(const DistributedTensor& x, std::string_view name) {
  std::string text(name);
  verify_replicas(std::span(&x, 1), std::span(&text, 1));
}

}  // namespace dtensor
