#include "tests/ops/helpers.h"

#include <cmath>

using namespace dtensor;
using Catch::Contains;
using List = std::vector<double>;

TEST_CASE("operands broadcast as in NumPy") {
  OneRank one;
  DistributedTensor row = one({3}), column = one({2, 1}), number = one(Shape{});
  CHECK(numbers(ops::add(column, row).full_tensor()) == List{0, 1, 2, 1, 2, 3});
  CHECK(ops::add(one({4, 1, 3}), column).shape() == Shape{4, 2, 3});
  CHECK(numbers((one({2, 2}) + number).full_tensor()) == List{0, 1, 2, 3});
  CHECK(ops::add(one({1}), one({0})).shape() == Shape{0});
  CHECK(ops::mul(number, number).shape() == Shape{});
  CHECK(numbers((-(row * 2 - row) / one({1, 3}) + 1.0).full_tensor())[1] == 0);
}

// Large enough for several threads and odd places; every element against a plain loop over indices.
TEST_CASE("broadcast operands of any size and strides give each element its own") {
  OneRank one;
  struct Case {
    Shape a, b;
  };
  for (const auto& [a, b] :
       {Case{{7, 5000}, {5000}}, Case{{7, 5000}, {7, 1}}, Case{{3, 1, 4001}, {1, 5, 1}}, Case{{60001}, {}},
        Case{{1, 1}, {40, 1000}}, Case{{2, 3, 1, 5, 1, 700}, {3, 4, 1, 2, 1}}}) {
    DistributedTensor x = one(a), y = one(b), sum = x - y * 0.5;
    List got = numbers(sum.local()), expected;
    Shape s = sum.shape();
    Shape at = Shape::filled(s.dims(), 0);
    auto value = [&](const Shape& of) {
      double i = 0;
      for (int d = 0; d < of.dims(); ++d)
        i = i * double(of[d]) + (of[d] == 1 ? 0 : double(at[s.dims() - of.dims() + d]));
      return i;
    };
    for (int64_t i = 0; i < numel(s); ++i) {
      expected.push_back(value(a) - value(b) * 0.5);
      for (int d = s.dims() - 1; d >= 0 && ++at[d] == s[d]; --d) at[d] = 0;
    }
    INFO(to_string(a) << " " << to_string(b));
    CHECK(got == expected);
  }
}

TEST_CASE("broadcast dimensions of size 1 are whole on every rank") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    Moved moved(rank);
    DistributedTensor a = DistributedTensor::distribute(iota({4, 3}), mesh, {Shard(0)});
    DistributedTensor bias = DistributedTensor::distribute(iota({1, 3}), mesh, {Replicate()});
    DistributedTensor y = ops::add(a, bias);
    expect(y.layout(), Layout{Shard(0)});
    expect(moved.log, "");
    expect(numbers(y.full_tensor())[4], 5);
  });
}

TEST_CASE("numbers stand on either side of operators") {
  OneRank one;
  DistributedTensor x = one({3}) + 1, i = one({3}, DType::i64);  // 1, 2, 3 and 0, 1, 2
  using D = DistributedTensor;
  struct Case {
    const char* text;
    D got;
    List expected;
  };
  for (const Case& c : std::initializer_list<Case>{{"x - 1", x - 1, {0, 1, 2}},
                                                   {"1 - x", 1 - x, {0, -1, -2}},
                                                   {"1 + x", 1 + x, {2, 3, 4}},
                                                   {"2 * x", 2 * x, {2, 4, 6}},
                                                   {"x / 2", x / 2, {0.5, 1, 1.5}},
                                                   {"6 / x", 6 / x, {6, 3, 2}},
                                                   {"pow(x, 2)", ops::pow(x, 2), {1, 4, 9}},
                                                   {"pow(2, x)", ops::pow(2, x), {2, 4, 8}},
                                                   {"5 - i", 5 - i, {5, 4, 3}},
                                                   {"x > 2", x > 2, {0, 0, 1}},
                                                   {"2 > x", 2 > x, {1, 0, 0}},
                                                   {"2 <= x", 2 <= x, {0, 1, 1}},
                                                   {"x != 2", x != 2, {1, 0, 1}},
                                                   {"2 == x", 2 == x, {0, 1, 0}},
                                                   {"i >= 1", i >= 1, {0, 1, 1}},
                                                   {"x < x", x < x, {0, 0, 0}},
                                                   {"x == x", x == x, {1, 1, 1}},
                                                   {"!(x > 1) | x >= 3", (!(x > 1)) | (x >= 3), {1, 0, 1}},
                                                   {"x > 1 & x < 3", (x > 1) & (x < 3), {0, 1, 0}},
                                                   {"x > 1 ^ x > 2", (x > 1) ^ (x > 2), {0, 1, 0}},
                                                   {"maximum(x, 2)", ops::maximum(x, 2), {2, 2, 3}},
                                                   {"minimum(i, 1)", ops::minimum(i, 1), {0, 1, 1}}}) {
    INFO(c.text);
    CHECK(numbers(c.got.full_tensor()) == c.expected);
  }
}

TEST_CASE("operands of the wrong type are errors that name a remedy") {
  OneRank one;
  DistributedTensor x = one({3}), i = one({3}, DType::i64), b = x > 1;
  CHECK_THROWS_WITH(x + i, Contains("[add] element types differ: f32[3] and i64[3]; use cast()"));
  CHECK_THROWS_WITH(b + b, Contains("[add] element type bool of [3]: use cast() to a type of numbers"));
  CHECK_THROWS_WITH(-b, Contains("[neg] element type bool of [3]"));
  CHECK_THROWS_WITH(ops::exp(i), Contains("[exp] element type i64 of [3]: use cast() to a floating type"));
  CHECK_THROWS_WITH(i / 2, Contains("[div] element type i64 of [3]: use cast()"));
  CHECK_THROWS_WITH(ops::pow(i, 2), Contains("[pow] element type i64 of [3]: use cast()"));
  CHECK_THROWS_WITH(i > 0.5, Contains("[gt] 0.5 is no integer, but the tensor is i64: use cast()"));
  CHECK_THROWS_WITH(i * 1e30, Contains("[mul_scalar] 1e+30 is no integer"));
  CHECK_THROWS_WITH(b == 2, Contains("[eq] 2 is neither 0 nor 1, but the tensor is bool"));
  CHECK_THROWS_WITH(x & x, Contains("[logical_and] element type f32 of [3]: use ne(x, 0) or cast() to bool"));
  CHECK_THROWS_WITH(!i, Contains("[logical_not] element type i64 of [3]"));
  CHECK_THROWS_WITH(ops::where(x, x, x), Contains("[where] the condition is bool, not f32[3]: compare, or use cast()"));
  CHECK_THROWS_WITH(ops::where(b, x, i), Contains("[where] element types differ: f32[3] and i64[3]"));
  CHECK_THROWS_WITH(ops::masked_fill(x, i, 0), Contains("[masked_fill] the mask is bool, not i64[3]"));
  CHECK_THROWS_WITH(ops::clamp(x, {}), Contains("[clamp] neither min nor max is given for f32[3]"));
  CHECK_THROWS_WITH(ops::clamp(i, 0.5), Contains("[clamp] 0.5 is no integer"));
  CHECK_THROWS_WITH(ops::gelu(x, "erf"), Contains("[gelu] approximate=erf: it is none or tanh"));
  CHECK_THROWS_WITH(ops::remainder(i, i), Contains("[remainder] integer 0 is divided by zero"));
  Op any = ops::add_op;
  any.types = same_types;
  CHECK_THROWS_WITH(call(any, {&b, &b}), Contains("[add] has no CPU kernel for bool"));
}

// Arithmetic is float32's, rounded once.
TEST_CASE("bf16 on the CPU is computed in float32") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "x=1");
  auto of = [&](std::vector<double> v) {
    DistributedTensor x = DistributedTensor::distribute(Tensor::of<double>({int64_t(v.size())}, v), mesh, Layout());
    return ops::cast(x, DType::bf16);
  };
  auto list = [](const DistributedTensor& x) {
    std::vector<double> v;
    for (int64_t i = 0; i < x.local().numel(); ++i) v.push_back(element(x.local(), i));
    return v;
  };
  DistributedTensor x = of({256, 1, 0, 1});
  CHECK(ops::add(x, x).dtype() == DType::bf16);
  CHECK(list(ops::sum(x)) == std::vector<double>{258});  // 256 + 1 is 256 in bf16
  CHECK(list(ops::mul(of({1.0078125, 3}), of({1.0078125, 0.5}))) == std::vector<double>{1.015625, 1.5});
  CHECK(list(ops::add(of({256}), of({1}))) == std::vector<double>{256});
  CHECK(ops::add(of({}), of({})).shape() == Shape{0});
  DistributedTensor f = ops::cast(x, DType::f32);
  CHECK(list(ops::softmax(x, 0)) == list(ops::cast(ops::softmax(f, 0), DType::bf16)));
}

// What passes, and what it becomes: contributions are combined only when the value is asked for.
TEST_CASE("Partial placements pass what they may, and an addend is counted once") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    Moved moved(rank);
    auto mine = [&](Reduce r, double rank0, double rank1) {
      Tensor t = Tensor::of<float>({1}, {float(rank.rank() ? rank1 : rank0)});
      return DistributedTensor::from_local(t, mesh, Layout{Partial(r)}, {1});
    };
    DistributedTensor sum = mine(Reduce::sum, 2, 5), avg = mine(Reduce::avg, 2, 6), max = mine(Reduce::max, -3, 4),
                      min = mine(Reduce::min, -3, 4), product = mine(Reduce::product, 2, 5);
    DistributedTensor ten = DistributedTensor::distribute(Tensor::of<float>({1}, {10}), mesh, Layout());
    auto check = [&](const DistributedTensor& y, Reduce r, double value) {
      expect(moved.log, "");
      expect(y.layout(), Layout{Partial(r)});
      expect(numbers(y.full_tensor())[0], value);
      moved.log.clear();
    };
    check(sum + sum, Reduce::sum, 14);
    check(sum + ten, Reduce::sum, 17);
    check(ten - sum, Reduce::sum, 3);
    check(avg + ten, Reduce::avg, 14);
    check(ten - avg, Reduce::avg, 6);
    check(avg + 1, Reduce::avg, 5);
    check(1 - avg, Reduce::avg, -3);
    check(sum * ten, Reduce::sum, 70);
    check(sum / 2, Reduce::sum, 3.5);
    check(product * product, Reduce::product, 100);
    check(-max, Reduce::min, -4);
    check(-min, Reduce::max, 3);
    check(max * 2, Reduce::max, 8);
    check(max * -2, Reduce::min, -8);
    check(max / -2, Reduce::min, -2);
    check(1 - max, Reduce::min, -3);
    check(ops::maximum(max, max), Reduce::max, 4);
    check(ops::minimum(max, ten), Reduce::max, 4);
    check(ops::relu(min), Reduce::min, 0);
    check(ops::clamp(max, -1, 2), Reduce::max, 2);
    check(ops::where(ten > 1, sum, sum), Reduce::sum, 7);
    check(ops::masked_fill(sum, ten < 1, 0), Reduce::sum, 7);
    expect(numbers((1 - sum).full_tensor())[0], -6);  // reduced first, or 1 would count twice
    if (moved.log.empty()) fail("nothing moved");
  });
}

TEST_CASE("what a rank without elements contributes does not wrap around, and is not multiplied by an infinity") {
  launch(2, [](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    DistributedTensor x = DistributedTensor::distribute(Tensor::of<int64_t>({1}, {-3}), mesh, {Shard(0)});
    DistributedTensor two = DistributedTensor::distribute(Tensor::of<int64_t>({}, {2}), mesh, Layout());
    for (const DistributedTensor& y : {ops::amax(x), ops::amin(x)}) {
      expect(to_string(y.layout()[0]).substr(0, 8), "Partial(");
      expect(numbers((y + two).full_tensor())[0], -1);
      expect(numbers((y - two).full_tensor())[0], -5);
      expect(numbers((two - y).full_tensor())[0], 5);
      expect(numbers((y + 2).full_tensor())[0], -1);
      expect(numbers((y - 2).full_tensor())[0], -5);
      expect(numbers((2 - y).full_tensor())[0], 5);
      expect(numbers((y * 2).full_tensor())[0], -6);
      expect(numbers((y * -2).full_tensor())[0], 6);
      expect(numbers((-y).full_tensor())[0], 3);
    }
    DistributedTensor sum = DistributedTensor::distribute(Tensor::of<float>({1}, {-3}), mesh, {Partial()});
    expect(numbers((sum * INFINITY).full_tensor())[0], -INFINITY);
    expect(numbers((sum / 0).full_tensor())[0], -INFINITY);
  });
}

TEST_CASE("integers are exact, and wrap around") {
  OneRank one;
  int64_t big = std::numeric_limits<int64_t>::max(), small = std::numeric_limits<int64_t>::min();
  DistributedTensor x = one(Tensor::of<int64_t>({3}, {big, small, -1}));
  auto values = [](const DistributedTensor& y) {
    const int64_t* p = y.local().data<int64_t>();
    return std::vector<int64_t>(p, p + y.local().numel());
  };
  CHECK(values(x + 1) == std::vector<int64_t>{small, small + 1, 0});
  CHECK(values(-x) == std::vector<int64_t>{-big, small, 1});
  CHECK(values(ops::abs(x)) == std::vector<int64_t>{big, small, 1});
  CHECK(values(x * x) == std::vector<int64_t>{1, 0, 1});
  CHECK(values(ops::remainder(x, -1)) == std::vector<int64_t>{0, 0, 0});
  CHECK(values(ops::clamp(x, {}, 0)) == std::vector<int64_t>{0, small, -1});
  CHECK(values(ops::sign(x)) == std::vector<int64_t>{1, -1, -1});
  DistributedTensor two = one(Tensor::of<int64_t>({2}, {big, big}));
  CHECK(values(ops::sum(two)) == std::vector<int64_t>{-2});
  CHECK(values(ops::prod(two)) == std::vector<int64_t>{1});
  CHECK(values(ops::cumsum(two, 0)) == std::vector<int64_t>{big, -2});
  CHECK(values(ops::index_add(two, 0, one({2}, DType::i64), two)) == std::vector<int64_t>{-2, -2});
  launch(2, [big](Rank& rank) {
    DeviceMesh mesh(rank, "x=2");
    Tensor part = Tensor::of<int64_t>({1}, {big});
    expect(*DistributedTensor::from_local(part, mesh, {Partial()}, {1}).full_tensor().data<int64_t>(), -2);
  });
}

TEST_CASE("cast changes types, and nothing else does") {
  OneRank one;
  DistributedTensor x = ops::mul(one({4}), 0.75);
  CHECK(numbers(ops::cast(x, DType::i64).full_tensor()) == List{0, 0, 1, 2});
  CHECK(numbers(ops::cast(x, DType::boolean).full_tensor()) == List{0, 1, 1, 1});
  CHECK(numbers(ops::cast(x > 1, DType::f32).full_tensor()) == List{0, 0, 1, 1});
  CHECK(numbers(ops::cast(one(Tensor::of<float>({3}, {NAN, 1e30f, -2.5f})), DType::i64).full_tensor()) ==
        List{-0x1p63, -0x1p63, -2});
  CHECK(ops::cast(x, DType::f64).dtype() == DType::f64);
  CHECK(ops::cast(x, DType::f32).id() == x.id());
  CHECK(numbers(ops::add(one({3}, DType::i64), one({3}, DType::i64)).full_tensor()) == List{0, 2, 4});
}
