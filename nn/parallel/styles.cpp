#include "nn/parallel/styles.h"

#include "nn/layers.h"

namespace dtensor::nn {
namespace {

using Layouts = std::vector<std::optional<Placement>>;

struct Line {  // what the hooks of one style know
  int axis;
  std::string text;
};

Placement normalized(const Module& m, const Line& line, const DistributedTensor& t, Placement p) {
  if (!p.is_shard()) return p;
  if (p.dim < -t.dims() || p.dim >= t.dims())
    fail("[{}] {}: {} names no dimension of {}", m.path(), line.text, to_string(p), to_string(t));
  return Shard(p.dim < 0 ? p.dim + t.dims() : p.dim);
}

// What a plan line says of a value that passes: it must be at `claim`, and is brought to `desired`.
void pass(Module& m, const Line& line, const char* what, size_t i, DistributedTensor& t, std::optional<Placement> claim,
          std::optional<Placement> desired) {
  if (m.mesh().shape().size(line.axis) == 1 || !t.defined()) return;
  if (claim) {
    Placement p = normalized(m, line, t, *claim);
    if (t.layout()[line.axis] != p)
      fail(
          "[{}] {} claims that {} {} arrives as {}={}, but it is {}: correct the claim, or prepare the {} with a line "
          "before",
          m.path().empty() ? "the root module" : m.path(), line.text, what, i, m.mesh().shape().name(line.axis),
          to_string(p), to_string(t), what);
  }
  if (!desired) return;
  Placement p = normalized(m, line, t, *desired);
  if (t.layout()[line.axis] == p) return;
  LabelScope label(m.mesh().rank_state(), Label::Kind::plan_line, line.text);
  t = t.redistribute(t.layout().with(line.axis, p));
}

// Layouts of the first inputs or outputs. More layouts than tensors is an error, when the module is called.
Module::Hook hook(Line line, const char* what, Layouts claims, Layouts desired) {
  return [=](Module& m, std::vector<DistributedTensor*>& tensors) {
    size_t n = std::max(claims.size(), desired.size());
    check(n <= tensors.size(), "[{}] {} gives layouts of {} {}s, but the module has {} tensor {}s", m.path(), line.text,
          n, what, tensors.size(), what);
    for (size_t i = 0; i < n; ++i)
      pass(m, line, what, i, *tensors[i], i < claims.size() ? claims[i] : std::nullopt,
           i < desired.size() ? desired[i] : std::nullopt);
  };
}

Layouts or_default(const Layouts& given, Placement otherwise) { return given.empty() ? Layouts{otherwise} : given; }

void shard_parameter(Module& m, const Line& line, const char* name, int dim) {
  Parameter* p = m.find_parameter(name);
  if (!p) return;  // a bias that is not there
  p->place(line.axis, Shard(dim));
}

void apply_column_or_row(Module& m, const Line& line, const Style& s) {
  bool column = s.kind == Style::Kind::colwise, linear = dynamic_cast<Linear*>(&m);
  check(linear || dynamic_cast<Embedding*>(&m), "[{}] {} fits Linear and Embedding, not {}", m.path(), line.text,
        m.kind());
  if (linear) {
    shard_parameter(m, line, "weight", column ? 0 : 1);
    if (column) shard_parameter(m, line, "bias", 0);
  } else {
    shard_parameter(m, line, "weight", column ? 1 : 0);
  }
  Placement in = linear && !column ? Shard(-1) : Replicate();  // what the sharded weight needs
  m.add_before_hook(hook(line, "input", or_default(s.input_layouts, in), {in}));
  m.add_after_hook(hook(line, "output", {}, or_default(s.output_layouts, column ? Shard(-1) : Replicate())));
}

}  // namespace

std::string_view name(Style::Kind kind) {
  constexpr std::string_view names[] = {"ColwiseParallel", "RowwiseParallel", "SequenceParallel", "PrepareModuleInput",
                                        "PrepareModuleOutput"};
  return names[int(kind)];
}

void apply(Module& m, int axis, const Style& s, std::string text) {
  Line line{axis, text.empty() ? std::string(name(s.kind)) : std::move(text)};
  switch (s.kind) {
    case Style::Kind::colwise:
    case Style::Kind::rowwise:
      return apply_column_or_row(m, line, s);
    case Style::Kind::sequence:
      m.add_before_hook(hook(line, "input", {}, {Shard(s.sequence_dim)}));
      return;
    case Style::Kind::prepare_input:
      m.add_before_hook(hook(line, "input", s.input_layouts, s.desired_input_layouts));
      return;
    case Style::Kind::prepare_output:
      m.add_after_hook(hook(line, "output", s.output_layouts, s.desired_output_layouts));
      return;
  }
}

}  // namespace dtensor::nn
