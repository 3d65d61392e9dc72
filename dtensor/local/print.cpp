// Printing a tensor's elements as NumPy does.
#include <bit>
#include <cmath>
#include <ostream>

#include "dtensor/local/tensor.h"

namespace dtensor {
namespace {

constexpr int64_t all_up_to = 1000;  // elements that are printed in full
constexpr int64_t edge = 3;          // first and last ones of a long dimension that are printed otherwise
constexpr size_t line_width = 80;

// The element `offset` elements after the first.
double floating(const Tensor& t, int64_t offset) {
  if (t.dtype() == DType::f32) return double(t.data<float>()[offset]);
  if (t.dtype() == DType::f64) return t.data<double>()[offset];
  uint16_t half = reinterpret_cast<const uint16_t*>(t.bytes_data())[offset];
  return double(std::bit_cast<float>(uint32_t(half) << 16));
}

// Calls f on the indices of a dimension that are shown, and on -1 for those left out.
template <class F>
void each_shown(const Tensor& t, int d, const F& f) {
  int64_t n = t.size(d);
  bool all = t.numel() <= all_up_to || n <= 2 * edge;
  for (int64_t i = 0; i < n; ++i)
    if (all || i < edge || i >= n - edge)
      f(i);
    else if (i == edge)
      f(int64_t(-1));
}

template <class F>
void each_shown_element(const Tensor& t, int d, int64_t offset, const F& f) {
  if (d == t.dims()) return f(offset);
  each_shown(t, d, [&](int64_t i) {
    if (i >= 0) each_shown_element(t, d + 1, offset + i * t.strides()[d], f);
  });
}

// How the elements of one tensor are written: all with the same number of decimals.
class Format {
 public:
  explicit Format(const Tensor& t) : t_(t) {
    if (is_floating(t.dtype())) {
      double most = 0, least = std::numeric_limits<double>::infinity();
      each_shown_element(t, 0, 0, [&](int64_t at) {
        double a = std::abs(floating(t, at));
        if (std::isfinite(a) && a > 0) most = std::max(most, a), least = std::min(least, a);
      });
      scientific_ = most >= 1e8 || least < 1e-4 || most > 1e6 * least;
      each_shown_element(t, 0, 0, [&](int64_t at) { decimals_ = std::max(decimals_, decimals(floating(t, at))); });
    }
    each_shown_element(t, 0, 0, [&](int64_t at) { width_ = std::max(width_, plain(at).size()); });
  }
  std::string operator()(int64_t offset) const { return fmt::format("{:>{}}", plain(offset), width_); }

 private:
  std::string number(double x, int decimals) const {
    return scientific_ ? fmt::format("{:.{}e}", x, decimals) : fmt::format("{:#.{}f}", x, decimals);
  }
  // How many of up to four decimals are needed.
  int decimals(double x) const {
    if (!std::isfinite(x)) return 0;
    int n = 4;
    while (n > 0 && std::stod(number(x, n - 1)) == std::stod(number(x, 4))) --n;
    return n;
  }
  std::string plain(int64_t offset) const {
    if (t_.dtype() == DType::boolean) return t_.data<bool>()[offset] ? "true" : "false";
    if (t_.dtype() == DType::i64) return fmt::format("{}", t_.data<int64_t>()[offset]);
    double x = floating(t_, offset);
    return std::isfinite(x) ? number(x, decimals_) : fmt::format("{}", x);
  }

  const Tensor& t_;
  bool scientific_ = false;
  int decimals_ = 0;
  size_t width_ = 0;
};

// Appends dimension d and those inside it. Lines inside d brackets are indented by d.
void append(std::string& text, const Tensor& t, const Format& format, int d, int64_t offset) {
  if (d == t.dims()) {
    text += format(offset);
    return;
  }
  bool innermost = d == t.dims() - 1;
  std::string indent(size_t(d) + 1, ' '), newlines(size_t(t.dims() - 1 - d), '\n');
  size_t line = text.rfind('\n') + 1, first = text.size();
  text += '[';
  each_shown(t, d, [&](int64_t i) {
    if (text.size() > first + 1) {
      text += innermost ? ", " : "," + newlines + indent;
      if (!innermost) line = text.rfind('\n') + 1;
    }
    size_t begin = text.size();
    if (i < 0)
      text += "...";
    else
      append(text, t, format, d + 1, offset + i * t.strides()[d]);
    if (innermost && text.size() + 1 - line > line_width && begin > first + 1) {  // one for the comma or bracket
      text.replace(begin - 1, 1, "\n" + indent);
      line = begin;
    }
  });
  text += ']';
}

}  // namespace

std::string to_string(const Tensor& t) {
  if (!t.defined()) return "an undefined tensor";
  std::string text = fmt::format("{}{}", name(t.dtype()), to_string(t.shape()));
  if (t.device() == Device::meta) return text + " meta";
  text += '\n';
  Tensor here = t.cpu();
  append(text, here, Format(here), 0, 0);
  return text;
}

std::ostream& operator<<(std::ostream& out, const Tensor& t) { return out << to_string(t); }

}  // namespace dtensor
