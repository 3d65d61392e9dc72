// Attributes: what an op is told besides its tensors, as a small struct of the card's family:
//
//     struct Norm {
//       double eps;
//       static constexpr auto fields() { return std::tuple(field("eps", &Norm::eps)); }
//     };
//
// A call takes one, call(rms_norm_op, {&x, &w}, Norm{1e-6}); kernels, rules and gradients read it, a.as<Norm>().eps.
//
// A double is a run-time number: calls that differ by its value are one call to the dispatcher's cache, to which only
// its class is known (zero, positive, negative, infinite, NaN); of a list of doubles, how many they are. So are
// integers that the struct names as run_time: a slice's start. All else is part of the cache's key.
#pragma once

#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <tuple>

#include "ops/core/named_values.h"
#include "placement/shape.h"

namespace dtensor {

// A member of a struct of attributes: bool, int64_t, double, DType, std::string, Shape (a short list of integers),
// std::vector<int64_t>, std::vector<double>, an enum that has a name(), or an optional one of them.
template <class S, class T>
struct Field {
  std::string_view name;
  T S::*at;
  bool run_time;
};
template <class S, class T>
constexpr Field<S, T> field(std::string_view name, T S::*at) {
  return {name, at, false};
}
template <class S, class T>
constexpr Field<S, T> run_time(std::string_view name, T S::*at) {
  return {name, at, true};
}

template <class S>
concept AttributeStruct = requires {
  S::fields();
};

namespace attributes {

// The number that stands for all of its class: 0, 1, -1, inf, -inf, NaN.
inline double class_of(double d) { return std::isfinite(d) ? double((d > 0) - (d < 0)) : d; }

template <class T>
constexpr bool is_optional = false;
template <class T>
constexpr bool is_optional<std::optional<T>> = true;
template <class T, class... Named>
constexpr bool is_named(std::variant<Named...>*) {
  return (std::is_same_v<T, Named> || ...);
}

inline uint64_t mixed(uint64_t h, uint64_t x) {
  h = (h ^ x) * 0x9e3779b97f4a7c15u;
  return h ^ h >> 29;
}
template <class T>
uint64_t hash(const T& v) {
  if constexpr (std::is_same_v<T, double>)
    return uint64_t(v > 0) | uint64_t(v < 0) << 1 | uint64_t(std::isfinite(v)) << 2;
  else if constexpr (is_optional<T>)
    return v ? hash(*v) + 1 : 0;
  else if constexpr (std::is_same_v<T, std::string>)
    return std::hash<std::string_view>{}(v);
  else if constexpr (std::is_integral_v<T> || std::is_enum_v<T>)
    return uint64_t(v);
  else if constexpr (std::is_same_v<T, std::vector<double>>)
    return uint64_t(v.size());
  else {
    uint64_t h = uint64_t(v.size());
    for (int64_t i : v) h = mixed(h, uint64_t(i));
    return h;
  }
}
template <class T>
bool same_key(const T& a, const T& b) {
  if constexpr (std::is_same_v<T, double>)
    return (a > 0) == (b > 0) && (a < 0) == (b < 0) && std::isfinite(a) == std::isfinite(b) &&
           std::isnan(a) == std::isnan(b);
  else if constexpr (is_optional<T>)
    return a.has_value() == b.has_value() && (!a || same_key(*a, *b));
  else if constexpr (std::is_same_v<T, std::vector<double>>)
    return a.size() == b.size();
  else
    return a == b;
}
template <class T>
void make_key(T& v) {
  if constexpr (std::is_same_v<T, double>)
    v = class_of(v);
  else if constexpr (std::is_same_v<T, std::vector<double>>)
    v.assign(v.size(), 0);
  else if constexpr (is_optional<T>) {
    if (v) make_key(*v);
  }
}
template <class T>
void add_to(NamedValues& list, std::string_view key, const T& v) {
  if constexpr (is_optional<T>) {
    if (v) add_to(list, key, *v);
  } else if constexpr (std::is_same_v<T, Shape>) {
    list.set(key, std::vector<int64_t>(v.begin(), v.end()));
  } else if constexpr (std::is_enum_v<T> && !std::is_same_v<T, DType>) {
    list.set(key, std::string(name(v)));
  } else {
    list.set(key, v);
  }
}
// False where the value is of another type.
template <class T>
bool assign(T& v, const NamedValue& value) {
  if constexpr (is_optional<T>) {
    typename T::value_type held{};
    if (!assign(held, value)) return false;
    v = held;
    return true;
  } else if constexpr (std::is_same_v<T, Shape>) {
    const auto* given = std::get_if<std::vector<int64_t>>(&value);
    if (given) v = *given;
    return given;
  } else if constexpr (is_named<T>(static_cast<NamedValue*>(nullptr))) {
    const T* given = std::get_if<T>(&value);
    if (given) v = *given;
    return given;
  } else {
    return false;
  }
}

template <class S, class F>
void for_fields(F f) {
  std::apply([&](const auto&... each) { (f(each), ...); }, S::fields());
}

// What is known of a struct of attributes.
struct Type {
  void (*copy)(void* to, const void* from);
  void (*move)(void* to, void* from);
  void (*destroy)(void*);
  // Itself, or the base that is of the wanted type: `struct Var : Over`, which says `using Base = Over`. Else null.
  const void* (*as)(const void*, const Type* wanted);
  uint64_t (*key_hash)(const void*);
  bool (*same_key)(const void*, const void*);
  void (*make_key)(void*);
  NamedValues (*values)(const void*);
  bool (*assign)(void*, std::string_view name, const NamedValue& value);
  bool (*is_run_time)(std::string_view name);
};

template <class S>
const void* as(const void* p, const Type* wanted);

template <AttributeStruct S>
inline constexpr Type type = {
    [](void* to, const void* from) { std::construct_at(static_cast<S*>(to), *static_cast<const S*>(from)); },
    [](void* to, void* from) { std::construct_at(static_cast<S*>(to), std::move(*static_cast<S*>(from))); },
    [](void* p) { std::destroy_at(static_cast<S*>(p)); },
    as<S>,
    [](const void* p) {
      uint64_t h = 0;
      for_fields<S>([&](const auto& f) {
        if (!f.run_time) h = mixed(h, hash(static_cast<const S*>(p)->*f.at));
      });
      return h;
    },
    [](const void* a, const void* b) {
      bool same = true;
      for_fields<S>([&](const auto& f) {
        same = same &&
               (f.run_time || attributes::same_key(static_cast<const S*>(a)->*f.at, static_cast<const S*>(b)->*f.at));
      });
      return same;
    },
    [](void* p) {
      for_fields<S>([&](const auto& f) {
        auto& v = static_cast<S*>(p)->*f.at;
        if (f.run_time)
          v = {};
        else
          attributes::make_key(v);
      });
    },
    [](const void* p) {
      NamedValues list;
      for_fields<S>([&](const auto& f) { add_to(list, f.name, static_cast<const S*>(p)->*f.at); });
      return list;
    },
    [](void* p, std::string_view name, const NamedValue& value) {
      bool done = false;
      for_fields<S>([&](const auto& f) {
        if (f.name == name) done = attributes::assign(static_cast<S*>(p)->*f.at, value);
      });
      return done;
    },
    [](std::string_view name) {
      bool found = false;
      for_fields<S>([&](const auto& f) {
        using T = std::remove_cvref_t<decltype(std::declval<S>().*f.at)>;
        if (f.name == name)
          found = f.run_time || std::is_same_v<T, double> || std::is_same_v<T, std::optional<double>> ||
                  std::is_same_v<T, std::vector<double>>;
      });
      return found;
    }};

template <class S>
const void* as(const void* p, const Type* wanted) {
  if (wanted == &type<S>) return p;
  if constexpr (requires { typename S::Base; })
    return as<typename S::Base>(static_cast<const typename S::Base*>(static_cast<const S*>(p)), wanted);
  return nullptr;
}

}  // namespace attributes

// A struct of attributes of any type, by value, or none.
class Attributes {
 public:
  Attributes() = default;
  template <AttributeStruct S>
  Attributes(S values) : type_(&attributes::type<S>) {
    static_assert(sizeof(S) <= capacity && alignof(S) <= alignof(std::max_align_t));
    std::construct_at(reinterpret_cast<S*>(bytes_), std::move(values));
  }
  Attributes(const Attributes& other) : type_(other.type_) {
    if (type_) type_->copy(bytes_, other.bytes_);
  }
  Attributes(Attributes&& other) noexcept : type_(other.type_) {
    if (type_) type_->move(bytes_, other.bytes_);
  }
  Attributes& operator=(Attributes other) noexcept {
    if (type_) type_->destroy(bytes_);
    type_ = other.type_;
    if (type_) type_->move(bytes_, other.bytes_);
    return *this;
  }
  ~Attributes() {
    if (type_) type_->destroy(bytes_);
  }

  bool empty() const { return !type_; }
  // The struct. Errors: there is none, or another.
  template <AttributeStruct S>
  const S& as() const {
    if (type_ == &attributes::type<S>) return *std::launder(reinterpret_cast<const S*>(bytes_));
    const void* base = type_ ? type_->as(bytes_, &attributes::type<S>) : nullptr;
    if (!base) fail_type();
    return *static_cast<const S*>(base);
  }

  // What a decision may depend on: run-time integers are 0, and of a double its class: 0, 1, -1, inf, -inf or NaN; a
  // list of doubles is as many zeros.
  Attributes key() const {
    Attributes k = *this;
    if (type_) type_->make_key(k.bytes_);
    return k;
  }
  uint64_t key_hash() const { return type_ ? type_->key_hash(bytes_) : 0; }
  // Whether the keys are the same, NaN being equal to NaN.
  friend bool same_key(const Attributes& a, const Attributes& b) {
    return a.type_ == b.type_ && (!a.type_ || a.type_->same_key(a.bytes_, b.bytes_));
  }

  // By name, for tools and tests.
  NamedValues values() const { return type_ ? type_->values(bytes_) : NamedValues(); }
  std::string to_string() const { return values().to_string(); }
  // Errors: none of that name, or one of another type.
  void set(std::string_view name, const NamedValue& value);
  bool is_run_time(std::string_view name) const { return type_ && type_->is_run_time(name); }

 private:
  [[noreturn]] void fail_type() const;

  static constexpr size_t capacity = 160;
  const attributes::Type* type_ = nullptr;
  alignas(std::max_align_t) std::byte bytes_[capacity];
};

}  // namespace dtensor
