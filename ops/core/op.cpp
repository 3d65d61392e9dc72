#include "ops/core/op.h"

#include <mutex>

#include "ops/cpu/gemm.h"

namespace dtensor {

const Context::FactorRange& Context::find(char factor) const {
  for (const FactorRange& f : factors_)
    if (f.name == factor) return f;
  fail("[{}] the kernel asks for factor {}, which the rule does not have", op, factor);
}

int64_t Context::leaves(std::string_view factors) const {
  int64_t local = 1, global = 1;
  for (const FactorRange& f : factors_)
    if (factors.find(f.name) != std::string_view::npos) local *= f.range.size(), global *= f.size;
  if (factors.find(batch_factor) != std::string_view::npos) global *= micro_batches;
  // At least 8 leaves of the whole, so that 2, 4 and 8 equal parts are subtrees even of a short sum.
  int64_t all = std::max<int64_t>(8, cpu::leaves(global));
  if (local == 0 || global % local) return cpu::leaves(local);
  int64_t parts = global / local;
  bool subtree = (parts & (parts - 1)) == 0 && parts <= all;
  return subtree ? all / parts : cpu::leaves(local);
}

DType same_types(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes&, int) {
  const TensorSpec* first = nullptr;
  for (const TensorSpec* in : inputs) {
    if (!in) continue;
    if (!first) first = in;
    check(in->dtype == first->dtype, "[{}] element types differ: {}{} and {}{}; use cast()", op, name(first->dtype),
          first->shape, name(in->dtype), in->shape);
  }
  return first ? first->dtype : DType::f32;
}

DType floating_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  for (const TensorSpec* x : in)
    if (x) check(is_floating(t), "[{}] element type {} of {}: use cast() to a floating type", op, name(t), x->shape);
  return t;
}

struct OpIdentity::Lasting : std::enable_shared_from_this<Lasting> {
  std::once_flag made;  // by the thread of any rank
  std::unique_ptr<Op> card;
};

OpIdentity::OpIdentity() : owner_(std::make_shared<Lasting>()), lasting_(owner_.get()) {}

std::shared_ptr<const Op> lasting(const Op& card) {
  OpIdentity::Lasting& l = *card.identity.lasting_;
  std::call_once(l.made, [&] {
    l.card = std::make_unique<Op>(card);
    l.card->sample.clear();
    l.card->identity.owner_.reset(), l.card->identity.lasting_ = &l;
  });
  return {l.shared_from_this(), l.card.get()};
}

BoundRule bind_rule(const Op& op, std::span<const Shape* const> inputs, const Attributes& attributes, DType dtype) {
  Rule rule = op.rule.function() ? op.rule.function()(inputs, attributes.key()) : Rule{std::string(op.rule.literal())};
  if (rule.passes.empty()) rule.passes = op.passes;
  if (rule.added.empty()) rule.added = op.added;
  if (rule.reduce.empty()) rule.reduce = op.reduce;
  if (op.wraps && dtype == DType::i64)  // the identity of the minimum plus 1 is the smallest of all
    for (Pass& p : rule.passes)
      std::erase_if(p.reductions, [](auto r) { return r.first == Reduce::max || r.first == Reduce::min; });
  return BoundRule(op.name, std::move(rule), inputs);
}

}  // namespace dtensor
