#include "dtensor/local/tensor.h"

#include <catch2/catch.hpp>

#include <cmath>
#include <numeric>
#include <thread>

#include "tests/dtensor/ranks.h"
#include "tests/placement/cases.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Equals;

namespace {

// Where each element is, in elements from `base`, in row-major order.
std::vector<int64_t> addresses(const Tensor& t, const void* base) {
  std::vector<int64_t> found;
  int64_t first = (t.bytes_data() - static_cast<const std::byte*>(base)) / itemsize(t.dtype());
  Shape at = Shape::filled(t.dims(), 0);
  for (int64_t i = 0; i < t.numel(); ++i) {
    int64_t a = first;
    for (int d = 0; d < t.dims(); ++d) a += at[d] * t.strides()[d];
    found.push_back(a);
    for (int d = t.dims() - 1; d >= 0 && ++at[d] == t.size(d); --d) at[d] = 0;
  }
  return found;
}

// Strides by which `shape` shows these addresses in order, if there are any.
bool view_exists(const std::vector<int64_t>& where, const Shape& shape) {
  Shape steps = contiguous_strides(shape), strides = Shape::filled(shape.dims(), 0);
  for (int d = 0; d < shape.dims(); ++d)
    if (shape[d] > 1) strides[d] = where[size_t(steps[d])] - where[0];
  for (size_t i = 0; i < where.size(); ++i) {
    int64_t a = where[0];
    for (int d = 0; d < shape.dims(); ++d) a += int64_t(i) / steps[d] % shape[d] * strides[d];
    if (a != where[i]) return false;
  }
  return true;
}

// All shapes of up to `dims` dimensions with n elements.
std::vector<Shape> factorizations(int64_t n, int dims) {
  std::vector<Shape> found;
  if (n == 1) found.push_back({});
  if (dims == 0) return found;
  for (int64_t last = 1; last <= n; ++last) {
    if (n % last) continue;
    std::vector<Shape> before = factorizations(n / last, dims - 1);
    for (Shape s : before) s.push_back(last), found.push_back(s);
  }
  return found;
}

struct Strided {
  Tensor base, view;
};

// A tensor of 1 to 4 dimensions, permuted, narrowed and regrouped at random.
Strided random_view(Random& random, const std::vector<int>& sizes, bool zeros = false) {
  Shape shape;
  for (int d = 1 + random.below(4); d > 0; --d) shape.push_back(sizes[size_t(random.below(int(sizes.size())))]);
  std::vector<float> v(static_cast<size_t>(numel(shape)));
  std::iota(v.begin(), v.end(), 0.f);
  Strided s{Tensor::of<float>(shape, v), {}};
  s.view = s.base;
  for (int k = random.below(4); k > 0; --k) {
    if (random.below(2)) {
      std::vector<int> order(static_cast<size_t>(s.view.dims()));
      std::iota(order.begin(), order.end(), 0);
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[size_t(random.below(int(i)))]);
      s.view = s.view.permute(order);
    } else {
      int d = random.below(s.view.dims());
      int64_t n = s.view.size(d), begin = random.below(int(n) + 1), size = random.below(int(n - begin) + 1);
      if (size || zeros) s.view = s.view.narrow(d, begin, size);
    }
  }
  return s;
}

}  // namespace

TEST_CASE("a view exists wherever strides allow it and nowhere else") {
  Random random{11};
  size_t views = 0, none = 0;
  for (int i = 0; i < 20000; ++i) {
    auto [base, t] = random_view(random, {1, 2, 3, 4, 6});
    std::vector<int64_t> where = addresses(t, base.bytes_data());
    std::vector<Shape> shapes = factorizations(t.numel(), 4);
    for (int k = 0; k < 6; ++k) {
      const Shape& shape = k ? shapes[size_t(random.below(int(shapes.size())))] : t.shape();
      Tensor v = t.view(shape);
      INFO(to_string(t.shape()) << " with strides " << to_string(t.strides()) << " as " << to_string(shape));
      REQUIRE(v.defined() == view_exists(where, shape));
      if (!v.defined()) {
        ++none;
        continue;
      }
      ++views;
      REQUIRE(v.shape() == shape);
      REQUIRE(addresses(v, base.bytes_data()) == where);
      REQUIRE(v.shares_storage(base));
    }
  }
  CHECK(views > 20000);
  CHECK(none > 10000);
}

TEST_CASE("every regrouping of every permutation of a small tensor") {
  for (const Shape& shape :
       {Shape{2, 3, 4}, Shape{4, 1, 6}, Shape{2, 2, 2, 3}, Shape{1, 1, 5}, Shape{2, 1, 3, 1}, Shape{8}}) {
    Tensor base = Tensor::zeros(std::make_shared<Allocator>(), DType::f32, shape);
    std::vector<int> order(shape.size());
    std::iota(order.begin(), order.end(), 0);
    do {
      Tensor t = base.permute(order);
      std::vector<int64_t> where = addresses(t, base.bytes_data());
      for (const Shape& s : factorizations(numel(shape), 5)) {
        Tensor v = t.view(s);
        INFO(to_string(t.shape()) << " with strides " << to_string(t.strides()) << " as " << to_string(s));
        REQUIRE(v.defined() == view_exists(where, s));
        if (v.defined()) REQUIRE(addresses(v, base.bytes_data()) == where);
      }
    } while (std::next_permutation(order.begin(), order.end()));
  }
}

TEST_CASE("a tensor without elements takes every shape without elements") {
  Random random{12};
  for (int i = 0; i < 2000; ++i) {
    auto [base, t] = random_view(random, {0, 1, 2, 3}, true);
    if (t.numel()) continue;
    REQUIRE(t.is_contiguous());
    for (const Shape& s : {Shape{0}, Shape{2, 0, 3}, Shape{0, 0}}) REQUIRE(t.view(s).shape() == s);
    REQUIRE(t.clone().shape() == t.shape());
  }
}

TEST_CASE("views and copies of strided tensors are those of naive indexing") {
  Random random{13};
  for (int i = 0; i < 5000; ++i) {
    auto [base, t] = random_view(random, {1, 2, 3, 5, 7}, true);
    std::vector<int64_t> where = addresses(t, base.bytes_data());
    std::vector<float> want(where.begin(), where.end());  // base holds 0, 1, 2, ...
    REQUIRE(values<float>(t) == want);
    bool contiguous = true;
    for (size_t k = 1; k < where.size(); ++k) contiguous &= where[k] == where[0] + int64_t(k);
    REQUIRE(t.is_contiguous() == contiguous);
    Tensor c = t.contiguous(), own = t.clone();
    REQUIRE((c.is_contiguous() && values<float>(c) == want && c.shares_storage(base) == contiguous));
    REQUIRE((own.is_contiguous() && values<float>(own) == want && !own.shares_storage(base)));
    REQUIRE(own.strides() == contiguous_strides(t.shape()));
    for (size_t k = 0; k < want.size(); ++k) REQUIRE(element(own, int64_t(k)) == want[k]);
    // From strided to strided, and only there.
    Tensor target = scattered(std::make_shared<Allocator>(), t.shape(), std::vector<float>(want.size(), -1));
    copy(t, target);
    REQUIRE(values<float>(target) == want);
    // Parts.
    Box box = whole_box(t.shape());
    for (int d = 0; d < t.dims(); ++d) {
      box[d].begin = random.below(int(t.size(d)) + 1);
      box[d].end = box[d].begin + random.below(int(t.size(d) - box[d].begin) + 1);
    }
    Tensor part = t.part(box);
    REQUIRE(part.shape() == box.shape());
    std::vector<float> inside;
    Shape strides = contiguous_strides(t.shape());
    for (size_t k = 0; k < want.size(); ++k) {
      bool in = true;
      for (int d = 0; d < t.dims(); ++d) {
        int64_t at = int64_t(k) / strides[d] % t.size(d);
        in &= box[d].begin <= at && at < box[d].end;
      }
      if (in) inside.push_back(want[k]);
    }
    REQUIRE(values<float>(part) == inside);
  }
}

TEST_CASE("a copy writes nothing around its target") {
  auto allocator = std::make_shared<Allocator>();
  for (DType t : {DType::f32, DType::f64, DType::i64, DType::boolean, DType::bf16}) {
    Tensor from(allocator, t, {2, 3}), whole(allocator, t, {4, 5});
    std::fill_n(from.bytes_data(), from.bytes(), std::byte{1});
    std::fill_n(whole.bytes_data(), whole.bytes(), std::byte{0});
    copy(from, whole.narrow(0, 1, 2).narrow(1, 2, 3));
    int64_t item = itemsize(t);
    for (int64_t i = 0; i < 20 * item; ++i) {
      int64_t row = i / item / 5, column = i / item % 5;
      REQUIRE(int(whole.bytes_data()[i]) == (row >= 1 && row < 3 && column >= 2));
    }
  }
}

TEST_CASE("tensors are filled and read") {
  auto allocator = std::make_shared<Allocator>();
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean}) {
    Tensor x(allocator, t, {3});
    fill(x, 1);
    for (int i = 0; i < 3; ++i) CHECK(element(x, i) == 1);
    x = Tensor::zeros(allocator, t, {3});
    for (int i = 0; i < 3; ++i) CHECK(element(x, i) == 0);
  }
  Tensor x = Tensor::of<int64_t>({2, 2}, {1, 2, 3, 4});
  CHECK((x.dtype() == DType::i64 && x.bytes() == 32 && x.numel() == 4 && x.size(1) == 2 && x.dims() == 2));
  CHECK(Tensor::of<float>({}, {5}).numel() == 1);
  CHECK_THROWS_WITH(Tensor::of<float>({2}, {5}), Equals("[Tensor::of] 1 values for shape [2]"));
  CHECK_THROWS_WITH(fill(x.narrow(1, 0, 1), 0), Equals("[fill] the tensor is not contiguous"));
  for (DType t : {DType::f32, DType::f64, DType::bf16}) {
    Tensor y(allocator, t, {2});
    fill(y, 1.5);
    scale(y, -3);
    CHECK(element(y, 1) == -4.5);
  }
  CHECK_THROWS_WITH(scale(x, 2), Equals("[scale] i64[2,2] is not floating and contiguous"));
  CHECK_THROWS_WITH(copy(x, Tensor::of<float>({2, 2}, {1, 2, 3, 4})), Equals("[copy] i64[2,2] to f32[2,2]"));
  CHECK_THROWS_WITH(copy(x, x.view({4})), Equals("[copy] i64[2,2] to i64[4]"));
}

TEST_CASE("floating types convert to each other, rounded to the nearest") {
  const double third = 1 / 3.0;
  Tensor f64 = Tensor::of<double>({2}, {third, 1e300}), f32 = f64.to(DType::f32), bf16 = f32.to(DType::bf16);
  CHECK(element(f32, 0) == float(third));
  CHECK(element(f32, 1) == INFINITY);
  CHECK(element(bf16, 0) == 0.333984375);  // 171 / 512
  CHECK(element(f64.to(DType::bf16), 0) == 0.333984375);
  CHECK(element(bf16.to(DType::f64), 0) == 0.333984375);
  CHECK(f32.to(DType::f32).bytes_data() == f32.bytes_data());
  Tensor strided = Tensor::of<float>({2, 2}, {1, 2, 3, 4}).narrow(1, 1, 1);
  CHECK(element(strided.to(DType::bf16), 1) == 4);
  CHECK(Tensor::placeholder(DType::f32, {3}).to(DType::bf16).device() == Device::meta);
  const char* why = ": both are floating, contiguous, of one shape and on one device";
  CHECK(error_of([&] {
          convert(f32, Tensor::of<int64_t>({2}, {1, 2}));
        }) == std::string("[convert] f32[2] on cpu to i64[2] on cpu") + why);
  CHECK(error_of([&] { convert(f32, strided); }) == std::string("[convert] f32[2] on cpu to f32[2,1] on cpu") + why);
}

TEST_CASE("law 8: a meta tensor has shapes and no value") {
  Tensor x = Tensor::placeholder(DType::f32, {1 << 20, 1 << 20});
  CHECK(x.bytes() == int64_t(4) << 40);
  CHECK(x.bytes_data() == nullptr);
  CHECK_THROWS_WITH(x.data<float>(), Equals("[Tensor::data] a meta tensor has no value: f32[1048576,1048576]"));
  CHECK_THROWS_WITH(x.data<double>(), Equals("[Tensor::data] asked for f64, but the tensor is f32[1048576,1048576]"));
  CHECK_THROWS_WITH(Tensor().data<float>(), Equals("[Tensor::data] the tensor is not defined"));
  int order[] = {1, 0};
  Tensor v = x.narrow(0, 5, 7).permute(order);
  CHECK((v.device() == Device::meta && v.shape() == Shape{1 << 20, 7} && !v.is_contiguous()));
  CHECK((v.clone().device() == Device::meta && v.contiguous().is_contiguous()));
  fill(x, 1), copy(x, x);
  auto host = std::make_shared<Allocator>();
  Tensor born(host, DType::f32, {100}, Device::meta);  // gets its bytes later
  CHECK((born.device() == Device::meta && born.allocator() == nullptr && host->bytes_in_use() == 0));
}

TEST_CASE("law 8: memory on meta is counted as memory that has bytes") {
  struct Seen {
    std::vector<int64_t> in_use;
    int64_t peak;
    bool operator==(const Seen&) const = default;
  };
  auto program = [](const std::shared_ptr<Allocator>& allocator) {
    Seen seen;
    auto note = [&] { seen.in_use.push_back(allocator->bytes_in_use()); };
    int order[] = {1, 0};
    {
      Tensor a(allocator, DType::f32, {100, 7}), b = Tensor::zeros(allocator, DType::i64, {3});
      note();
      Tensor view = a.permute(order), same = a.contiguous(), handle = a;
      note();
      CHECK((a.device() == allocator->device() && a.shares_storage(view) && !a.unique() && b.unique()));
      Tensor moved = view.contiguous(), other = b.to(allocator), none(allocator, DType::f32, {0, 5});
      note();
      CHECK_FALSE(moved.shares_storage(a));
      a = same = handle = Tensor();
      note();  // the view still holds it
      view = Tensor();
      note();
    }
    note();
    seen.peak = allocator->peak_bytes();
    return seen;
  };
  Seen real = program(make_allocator(Device::cpu)), dry = program(make_allocator(Device::meta));
  CHECK(real.in_use == std::vector<int64_t>{2824, 2824, 5648, 5648, 2848, 0});
  CHECK(dry.in_use == real.in_use);
  CHECK(dry.peak == real.peak);
  auto endless = make_allocator(Device::meta);  // counts what no machine has
  endless->free(endless->allocate(int64_t(1) << 60), int64_t(1) << 60);
  CHECK(endless->peak_bytes() == int64_t(1) << 60);
}

TEST_CASE("the allocator counts bytes and reuses large blocks") {
  auto allocator = std::make_shared<Allocator>();
  {
    Tensor a(allocator, DType::f32, {100}), b(allocator, DType::i64, {3, 7});
    CHECK(allocator->bytes_in_use() == 400 + 168);
    Tensor view = a.narrow(0, 10, 20), copy_of_handle = a;
    a = Tensor();
    CHECK(allocator->bytes_in_use() == 568);  // the view still holds it
    view = copy_of_handle = Tensor();
    CHECK(allocator->bytes_in_use() == 168);
    CHECK(allocator->peak_bytes() == 568);
    allocator->reset_peak();
    CHECK(allocator->peak_bytes() == 168);
    Tensor empty(allocator, DType::f32, {0});
    CHECK(allocator->bytes_in_use() == 168);
  }
  CHECK(allocator->bytes_in_use() == 0);
  for (int64_t n : {1, 15, 16, 17, 1000, 16383, 16384, 100000}) {
    Tensor first(allocator, DType::f32, {n});
    CHECK(reinterpret_cast<uintptr_t>(first.bytes_data()) % 64 == 0);
    std::byte* block = first.bytes_data();
    std::fill_n(block, first.bytes(), std::byte{7});
    bool large = first.bytes() >= 64 << 10;
    first = Tensor();
    Tensor second(allocator, DType::f32, {n});
    if (large) CHECK(second.bytes_data() == block);
    Tensor third(allocator, DType::f32, {n});
    CHECK(third.bytes_data() != second.bytes_data());
  }
  CHECK(allocator->bytes_in_use() == 0);
  CHECK(make_host_allocator(allocator) == allocator);
  CHECK(make_host_allocator(make_allocator(Device::meta))->device() == Device::meta);
}

TEST_CASE("tensors may be freed on any thread") {
  auto allocator = std::make_shared<Allocator>();
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      std::vector<Tensor> kept;
      for (int64_t i = 0; i < 300; ++i) {
        Tensor x(allocator, DType::f32, {1000 + 7000 * (i % 7)});
        fill(x, t);
        kept.push_back(x);
        if (i % 3) kept.erase(kept.begin());
        if (element(kept[0], 0) != t) return;  // leaves bytes_in_use() as it is
      }
      std::thread([mine = std::move(kept)]() mutable { mine.clear(); }).join();
    });
  for (std::thread& t : threads) t.join();
  CHECK(allocator->bytes_in_use() == 0);
}

TEST_CASE("law 9: memory that is exhausted is an error with what was asked and what is held") {
  auto allocator = std::make_shared<Allocator>();
  Tensor held(allocator, DType::f32, {50'000});
  std::string text =
      "[Tensor] no host memory for 1125899906842624 bytes: the tensors of this rank hold 200000; take a smaller "
      "--batch-size, or give the process more (`ulimit -v` limits it too)";
  for (int i = 0; i < 2; ++i) {
    CHECK_THROWS_WITH(Tensor(allocator, DType::f32, {int64_t(1) << 48}), Equals(text));
    CHECK(allocator->bytes_in_use() == 200'000);
    CHECK(allocator->peak_bytes() == 200'000);
  }
  CHECK_NOTHROW(held.clone());
  int64_t large = int64_t(1) << 40;
  for (Device device : {Device::cpu, Device::meta})
    for (const Shape& shape :
         {Shape{large, large}, Shape{large, large, large}, Shape{-1}, Shape{4, -2}, Shape{large << 21}})
      CHECK_THROWS_WITH(
          Tensor(make_allocator(device), DType::f64, shape),
          Equals(fmt::format("[Tensor] f64{} is no tensor: sizes are not negative, and make at most 2^62 bytes",
                             to_string(shape))));
}

TEST_CASE("storage is unique while one handle holds it") {
  Tensor a = Tensor::of<float>({4}, {1, 2, 3, 4});
  CHECK(a.unique());
  {
    Tensor b = a, c = a.narrow(0, 1, 2);
    CHECK_FALSE(a.unique());
    CHECK((b.shares_storage(a) && c.shares_storage(a) && c.data<float>() == a.data<float>() + 1));
    b = std::move(c);
    CHECK_FALSE(a.unique());
    b = a.clone();
    CHECK((a.unique() && b.unique() && !b.shares_storage(a)));
  }
  CHECK(a.unique());
}

TEST_CASE("bfloat16 is the upper half of a float32, rounded to the nearest, ties to even") {
  struct Case {
    float from, to;
  };
  const float infinity = std::numeric_limits<float>::infinity();
  for (auto [from, to] : {Case{1, 1},
                          {0x1.01p0f, 0x1p0f},
                          {0x1.03p0f, 0x1.04p0f},
                          {0x1.010002p0f, 0x1.02p0f},
                          {-0.0f, -0.0f},
                          {0x1.ffffp127f, infinity},
                          {-infinity, -infinity}}) {
    CHECK(float(BFloat16(from)) == to);
    CHECK(std::signbit(float(BFloat16(from))) == std::signbit(to));
  }
  CHECK(std::isnan(float(BFloat16(std::bit_cast<float>(0x7f800001u)))));
}
