#include "ops/cuda/attention_engines.h"

#include <fmt/format.h>
#include <fstream>
#include <sstream>

#include "ops/cuda/timing.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {

constexpr std::string_view head = "attention of cuDNN ";

std::string describe(const CudnnAttention& call) {
  const AttentionShape& s = call.shape;
  return fmt::format("attention {} of {} x {} queries, {} keys, {}/{} heads of {}{}{}",
                     call.pass == AttentionPass::forward ? "forward" : "backward", s.batch, s.queries, s.keys, s.heads,
                     s.kv_heads, s.head_dim, s.causal ? ", causal" : "", call.deterministic ? "" : ", in any order");
}

// Operands of a call, full of random numbers; sequences and runs of equal length.
class Operands {
 public:
  Operands(const CudnnAttention& call, const std::shared_ptr<Allocator>& allocator) {
    const AttentionShape& s = call.shape;
    const AttentionStrides lse{s.heads * s.queries, 1, s.queries};
    const AttentionStrides* strides[] = {&s.q, &s.k, &s.v, &s.out, nullptr, &s.dout, &s.dq, &s.dk, &s.dv};
    const bool of_keys[] = {false, true, true, false, false, false, false, true, true};
    const int tensors = call.pass == AttentionPass::forward ? 5 : attention_tensors;
    std::array<int64_t, attention_tensors> at{}, by_token{};
    int64_t bytes = 0;
    for (int t = 0; t < tensors; ++t) {
      const AttentionStrides& by = strides[t] ? *strides[t] : lse;
      int64_t tokens = of_keys[t] ? s.keys : s.queries, heads = of_keys[t] ? s.kv_heads : s.heads;
      by_token[size_t(t)] = strides[t] ? by.sequence : s.heads;
      int64_t elements = call.tokens ? call.tokens * by_token[size_t(t)]
                                     : (s.batch - 1) * by.batch + (tokens - 1) * by.sequence + (heads - 1) * by.head +
                                           (strides[t] ? s.head_dim : 1);
      at[size_t(t)] = bytes, bytes += (elements * (strides[t] ? 2 : 4) + 255) / 256 * 256;
    }
    memory_ = Storage(allocator, bytes);
    fill_random(memory_.data(), bytes, allocator->stream());
    auto of = [&](size_t t) { return int(t) < tensors ? memory_.data() + at[t] : nullptr; };
    pointers = {of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7), of(8)};
    if (call.padded) give_lengths(call, by_token, allocator);
  }

  AttentionPointers pointers{};
  AttentionLengths lengths;

 private:
  void give_lengths(const CudnnAttention& call, const std::array<int64_t, attention_tensors>& by_token,
                    const std::shared_ptr<Allocator>& allocator) {
    const AttentionShape& s = call.shape;
    const int64_t entries = (s.batch + 4) / 4 * 4;  // so that all begin at 16 bytes
    const int64_t queries = call.tokens ? std::min(s.queries, call.tokens / s.batch) : s.queries,
                  keys = call.tokens ? queries : s.keys;
    std::vector<int64_t> offsets;
    for (int64_t by : by_token)
      for (int64_t b = 0; b < entries; ++b) offsets.push_back(std::min(b, s.batch) * queries * by);
    std::vector<int32_t> counts;
    counts.resize(size_t(entries), int32_t(queries));
    counts.resize(size_t(2 * entries), int32_t(keys));
    const int64_t bytes = int64_t(offsets.size()) * 8;
    lengths_ = Storage(allocator, bytes + 2 * entries * 4);
    copy(lengths_.data(), offsets.data(), bytes, allocator->stream());
    copy(lengths_.data() + bytes, counts.data(), 2 * entries * 4, allocator->stream());
    auto* first = reinterpret_cast<int32_t*>(lengths_.data() + bytes);
    lengths = {first, first + entries, nullptr, 0};
    if (call.tokens) lengths.offsets = reinterpret_cast<int64_t*>(lengths_.data()), lengths.offset_stride = entries;
  }

  Storage memory_, lengths_;
};

}  // namespace

AttentionEngines::Key AttentionEngines::key_of(const CudnnAttention& call) {
  const AttentionShape& s = call.shape;
  Key key{int64_t(s.dtype),   s.batch,     s.heads,     s.kv_heads,        s.queries,    s.keys,
          s.head_dim,         s.causal,    s.diagonal,  s.window,          s.first_head, s.repeats,
          int64_t(call.pass), call.padded, call.tokens, call.deterministic};
  auto to = key.begin() + 16;
  for (const AttentionStrides& t : {s.q, s.k, s.v, s.out, s.dout, s.dq, s.dk, s.dv})
    for (int64_t stride : {t.batch, t.sequence, t.head}) *to++ = stride;
  return key;
}

std::optional<int64_t> AttentionEngines::chosen(const CudnnAttention& call) const {
  auto at = proposals_.find(key_of(call));
  return at == proposals_.end() ? std::nullopt : std::optional(at->second);
}

size_t AttentionEngines::choose(const CudnnAttention& call, const std::vector<Candidate>& list,
                                const std::shared_ptr<Allocator>& allocator, std::vector<std::string>& found) {
  Operands operands(call, allocator);
  std::vector<double> times;
  for (const Candidate& c : list) {
    auto launch = [&](int) { c.run(operands.pointers, operands.lengths); };
    launch(0);
    times.push_back(time_launches(allocator->stream(), launch) / timed_launches);
  }
  auto best = size_t(std::min_element(times.begin(), times.end()) - times.begin());
  proposals_[key_of(call)] = list[best].proposal;
  std::string others;
  for (size_t i = 0; i < list.size(); ++i)
    if (i != best) others += fmt::format("{} engine {} {:.3f}", others.empty() ? ";" : ",", list[i].engine, times[i]);
  found.push_back(
      fmt::format("{}: engine {} takes {:.3f} ms{}", describe(call), list[best].engine, times[best], others));
  return best;
}

void AttentionEngines::save(const std::string& path) const {
  std::ofstream file(path, std::ios::app);
  for (const auto& [key, proposal] : proposals_)
    file << fmt::format("{}{}: {} = {}\n", head, version_, fmt::join(key, " "), proposal);
  file.close();
  check(bool(file), "[attention] cannot write {}", path);
}

void AttentionEngines::load(const std::string& path) {
  std::ifstream file(path);
  check(bool(file), "[attention] cannot read {}", path);
  std::string line;
  for (int n = 1; std::getline(file, line); ++n) {
    if (!line.starts_with(head)) continue;  // a product's
    std::istringstream text(line.substr(head.size()));
    size_t version = 0;
    Key key;
    int64_t proposal = -1;
    char colon = 0, equals = 0;
    text >> version >> colon;
    for (int64_t& x : key) text >> x;
    text >> equals >> proposal;
    check(text && colon == ':' && equals == '=' && proposal >= 0 && (text >> std::ws).eof(),
          "[attention] line {} of {} is no choice of an engine: \"{}\"", n, path, line);
    check(version == version_, "[attention] {} is of cuDNN {}, and this is {}: tune again, to another file", path,
          version, version_);
    proposals_[key] = proposal;
  }
}

}  // namespace dtensor::cuda
