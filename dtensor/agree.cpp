#include "dtensor/agree.h"

#include <cstring>
#include <limits>

#include "dtensor/redistribute.h"

namespace dtensor {
namespace {

using Words = std::vector<int64_t>;

// The reduction of every rank's words, as a recorded collective; on meta tensors nothing is known but what is given.
Words reduce(const DeviceMesh& mesh, const Words& mine, Reduce r) {
  Rank& rank = mesh.rank_state();
  int64_t n = int64_t(mine.size());
  Tensor local(rank.allocator(), DType::i64, {n}, rank.device());
  bool meta = rank.device() == Device::meta;
  if (!meta) write_on_host(local, [&](const Tensor& t) { std::copy(mine.begin(), mine.end(), t.data<int64_t>()); });
  std::vector<Placement> partial(size_t(mesh.shape().axes()), Partial(r));
  Layout layout = normalize("agree_on_error", mesh.shape(), 1, partial);
  NoGrad scope(rank);
  Tensor all = DistributedTensor::from_local(local, mesh, layout, {n})
                   .redistribute(Layout(), {.reason = "agreement on errors"})
                   .local();
  if (meta) return mine;
  all = all.cpu();
  return Words(all.data<int64_t>(), all.data<int64_t>() + n);
}

std::string text_of(const std::exception_ptr& e) {
  try {
    std::rethrow_exception(e);
  } catch (const std::exception& known) {
    return known.what();
  } catch (...) {
    return "something that is no std::exception was thrown";
  }
}

}  // namespace

void agree_on_error(const DeviceMesh& mesh, const std::function<void()>& f) {
  std::exception_ptr error;
  try {
    f();
  } catch (...) {
    if (mesh.size() == 1 || mesh.rank_state().device() == Device::meta) throw;
    error = std::current_exception();
  }
  // The first rank that failed and the length of its text, in one number.
  constexpr int64_t none = std::numeric_limits<int64_t>::max(), lengths = int64_t(1) << 32;
  std::string text = error ? text_of(error) : "";
  int64_t first = reduce(mesh, {error ? mesh.rank() * lengths + int64_t(text.size()) : none}, Reduce::min)[0];
  if (first == none) return;
  int culprit = int(first / lengths);
  size_t length = size_t(first % lengths);
  Words words((length + 7) / 8);
  if (culprit == mesh.rank()) std::memcpy(words.data(), text.data(), length);
  words = reduce(mesh, words, Reduce::sum);
  if (culprit == mesh.rank()) std::rethrow_exception(error);
  throw Error(fmt::format("rank {} failed: {}", culprit, std::string(reinterpret_cast<char*>(words.data()), length)));
}

}  // namespace dtensor
