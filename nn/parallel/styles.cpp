#include "nn/parallel/styles.h"

#include "nn/layers.h"
#include "nn/parallel/implicit_moves.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

using Layouts = Style::Layouts;

struct Line {  // what the hooks of one style know
  int axis;
  std::string text;
  std::shared_ptr<ImplicitMoves> moves;
};

std::string path_of(const Module& m) { return m.path().empty() ? "the root module" : m.path(); }

Placement normalized(const Module& m, const Line& line, const DistributedTensor& t, Placement p) {
  if (!p.is_shard()) return p;
  if (p.dim < -t.dims() || p.dim >= t.dims())
    fail("[{}] {}: {} names no dimension of {}", m.path(), line.text, to_string(p), to_string(t));
  return Shard(p.dim < 0 ? p.dim + t.dims() : p.dim);
}

[[noreturn]] void fail_claim(const Module& m, const Line& line, const char* what, size_t i, const DistributedTensor& t,
                             Placement claim) {
  const std::string& axis = m.mesh().shape().name(line.axis);
  Placement is = t.layout()[line.axis];
  std::string cause = line.moves->last(m.mesh(), line.axis, is);
  if (!cause.empty()) cause = fmt::format("; the last op to bring a tensor to {}={} unasked was {}", axis, is, cause);
  fail(
      "[{}] {} claims that {} {} arrives as {}={}, but it is {}: correct the claim, or prepare the {} with a line "
      "before{}",
      path_of(m), line.text, what, i, axis, claim, t, what, cause);
}

// What a plan line says of a value that passes: it must be at `claim`, and is brought to `desired`.
void pass(Module& m, const Line& line, const char* what, size_t i, DistributedTensor& t, std::optional<Placement> claim,
          std::optional<Placement> desired) {
  if (m.mesh().shape().size(line.axis) == 1 || !t.defined()) return;
  if (claim) {
    Placement p = normalized(m, line, t, *claim);
    if (t.layout()[line.axis] != p) fail_claim(m, line, what, i, t, p);
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

// The layouts by position, with those by name put where the module has these inputs.
Layouts by_position(const Module& m, const Line& line, Layouts list, const Style::NamedLayouts& named) {
  for (const auto& [key, layout] : named) {
    auto at = std::find(m.input_names.begin(), m.input_names.end(), key);
    check(at != m.input_names.end(), "[{}] {}: there is no tensor input \"{}\"{}", path_of(m), line.text, key,
          nearest_hint(key, m.input_names));
    auto i = size_t(at - m.input_names.begin());
    if (i >= list.size()) list.resize(i + 1);
    check(!list[i], "[{}] {}: input \"{}\" has a layout by its position too; keep one of them", path_of(m), line.text,
          key);
    list[i] = layout;
  }
  return list;
}

void place(Module& m, const Line& line, Parameter& p, Placement placement) {
  Placement now = p.used_layout()[line.axis], wanted = placement;
  if (wanted.is_shard() && wanted.dim < 0) wanted = Shard(wanted.dim + p.shape().dims());
  check(now.is_replicate() || now == wanted,
        "[{}] {} places {} as {}, but another line has placed it as {}: the two modules share it, so it has one "
        "placement",
        path_of(m), line.text, p.path(), to_string(placement), to_string(now));
  p.place(line.axis, placement);
}

// Weight and bias of what a column or a row may be; whether it takes a row of its input.
bool place_column_or_row(Module& m, const Line& line, bool column) {
  if (auto* linear = dynamic_cast<Linear*>(&m)) {
    place(m, line, linear->weight, Shard(column ? 0 : 1));
    if (column && linear->bias) place(m, line, *linear->bias, Shard(0));
    return !column;
  }
  if (auto* conv = dynamic_cast<Conv1D*>(&m)) {
    place(m, line, conv->weight, Shard(column ? 1 : 0));
    if (column) place(m, line, conv->bias, Shard(0));
    return !column;
  }
  auto* embedding = dynamic_cast<Embedding*>(&m);
  check(embedding, "[{}] {} fits Linear and Embedding, not {}", m.path(), line.text, m.kind());
  place(m, line, embedding->weight, Shard(column ? 1 : 0));
  return false;
}

void apply_column_or_row(Module& m, const Line& line, const Style& s) {
  bool column = s.kind == Style::Kind::colwise;
  Placement in = place_column_or_row(m, line, column) ? Shard(-1) : Replicate();  // what the sharded weight needs
  m.add_before_hook(hook(line, "input", or_default(s.input_layouts, in), {in}));
  m.add_after_hook(hook(line, "output", {}, or_default(s.output_layouts, column ? Shard(-1) : Replicate())));
}

void apply_linear_loss(Module& m, const Line& line, const Style& s) {
  auto* criterion = dynamic_cast<LinearCrossEntropyLoss*>(&m);
  check(criterion, "[{}] {} fits LinearCrossEntropyLoss, the criterion of a model, not {}", path_of(m), line.text,
        m.kind());
  criterion->in_use = true;
  Placement sequence = Shard(s.sequence_dim);
  m.add_before_hook(hook(line, "input", {}, {sequence, sequence}));
  m.add_after_hook(hook(line, "output", {}, or_default(s.output_layouts, Replicate())));
}

void apply_swiglu_linear(Module& m, const Line& line, const Style& s) {
  check(dynamic_cast<SwiGLULinear*>(&m), "[{}] {} fits SwiGLULinear, not {}", path_of(m), line.text, m.kind());
  Layouts columns{Shard(-1), Shard(-1)};
  m.add_before_hook(hook(line, "input", s.input_layouts.empty() ? columns : s.input_layouts, columns));
  m.add_after_hook(hook(line, "output", {}, or_default(s.output_layouts, Replicate())));
}

void prepare_input(Module& m, const Line& line, const Style& s) {
  m.add_before_hook(hook(line, "input", by_position(m, line, s.input_layouts, s.input_kwarg_layouts),
                         by_position(m, line, s.desired_input_layouts, s.desired_input_kwarg_layouts)));
}
void prepare_output(Module& m, const Line& line, const Style& s) {
  m.add_after_hook(hook(line, "output", s.output_layouts, s.desired_output_layouts));
}

}  // namespace

std::string_view name(Style::Kind kind) {
  constexpr std::string_view names[] = {"ColwiseParallel",
                                        "RowwiseParallel",
                                        "SequenceParallel",
                                        "PrepareModuleInput",
                                        "PrepareModuleOutput",
                                        "PrepareModuleInputOutput",
                                        "PrepareModuleWeight",
                                        "LinearLossParallel",
                                        "SwiGLULinearParallel",
                                        "local_colwise",
                                        "local_rowwise",
                                        "gather",
                                        "replicated_with_grad_allreduce"};
  return names[int(kind)];
}

void apply(Module& m, int axis, const Style& s, std::string text) {
  using Kind = Style::Kind;
  Line line{axis, text.empty() ? std::string(name(s.kind)) : std::move(text), ImplicitMoves::of(m.mesh().rank_state())};
  switch (s.kind) {
    case Kind::colwise:
    case Kind::rowwise:
      return apply_column_or_row(m, line, s);
    case Kind::local_colwise:
    case Kind::local_rowwise:
      place_column_or_row(m, line, s.kind == Kind::local_colwise);
      return;
    case Kind::sequence:
      m.add_before_hook(hook(line, "input", {}, {Shard(s.sequence_dim)}));
      return;
    case Kind::prepare_input_output:
      prepare_input(m, line, s);
      return prepare_output(m, line, s);
    case Kind::prepare_input:
      return prepare_input(m, line, s);
    case Kind::prepare_output:
      return prepare_output(m, line, s);
    case Kind::prepare_weight:
      for (Parameter* p : m.own_parameters()) place(m, line, *p, s.layouts);
      if (auto* linear = dynamic_cast<Linear*>(&m); linear && linear->is_tied())
        place(m, line, linear->weight, s.layouts);
      return;
    case Kind::linear_loss:
      return apply_linear_loss(m, line, s);
    case Kind::swiglu_linear:
      return apply_swiglu_linear(m, line, s);
    case Kind::gather:
      m.add_after_hook(hook(line, "output", {}, {Replicate()}));
      return;
    case Kind::replicated:
      return;
  }
}

}  // namespace dtensor::nn
