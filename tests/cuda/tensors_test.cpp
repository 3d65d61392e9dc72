// Tensors, their memory, and collectives of ranks that share a device.
#include <catch2/catch.hpp>

#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "dtensor/local/copy_async.h"
#include "dtensor/redistribute.h"
#include "dtensor/verify.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

std::shared_ptr<Allocator> device_memory() { return cuda::make_allocator(0); }

std::vector<double> elements(const Tensor& t) {
  Tensor here = t.contiguous().cpu();
  std::vector<double> v;
  for (int64_t i = 0; i < here.numel(); ++i) v.push_back(element(here, i));
  return v;
}

constexpr DType types[] = {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean};

// 0, 1, 2, ... (of bools: odd or even).
Tensor counted(DType type, const Shape& shape) {
  Tensor t(std::make_shared<Allocator>(), type, shape);
  std::byte* at = t.bytes_data();
  for (int64_t i = 0; i < t.numel(); ++i, at += itemsize(type)) {
    Tensor one(t.allocator(), type, {});
    fill(one, type == DType::boolean ? double(i % 2) : double(i));
    std::memcpy(at, one.bytes_data(), size_t(itemsize(type)));
  }
  return t;
}

}  // namespace

TEST_CASE("cuda: tensors cross between host and device, whatever their strides") {
  auto device = device_memory();
  for (DType type : types) {
    Tensor host = counted(type, {3, 4, 5});
    Tensor there = host.to(device);
    CHECK(there.device() == Device::cuda);
    CHECK(there.cpu().device() == Device::cpu);
    CHECK(elements(there) == elements(host));
    CHECK(to_string(there) == to_string(host));
    CHECK(element(there, 7) == element(host, 7));
    const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {2, 1, 0}, {1, 0, 2}};
    for (const auto& order : orders)
      for (int64_t begin : {0, 1})
        for (int64_t size : {0, 1, 2}) {
          auto view = [&](const Tensor& t) { return t.permute(order).narrow(0, begin, size); };
          INFO(name(type) << " " << order[0] << order[1] << order[2] << " from " << begin << ", " << size);
          CHECK(elements(view(there)) == elements(view(host)));            // strided on the device
          CHECK(elements(view(host).to(device)) == elements(view(host)));  // from a strided one
          Tensor target = Tensor::zeros(device, type, host.shape()),
                 expected = Tensor::zeros(host.allocator(), type, host.shape());
          copy(view(host), view(target));  // to a strided one
          copy(view(host), view(expected));
          CHECK(elements(target) == elements(expected));
        }
  }
  CHECK_THROWS_WITH(counted(DType::f32, {2}).to(device).data<float>(),
                    "[Tensor::data] f32[2] is on cuda, where only kernels reach its elements: take its cpu()");
}

TEST_CASE("cuda: transposed copies are those of the CPU, of any size, in parts and with other dimensions around") {
  auto device = device_memory();
  auto same = [](const Tensor& a, const Tensor& b) {
    Tensor x = a.cpu().contiguous(), y = b.contiguous();
    return std::memcmp(x.bytes_data(), y.bytes_data(), size_t(y.bytes())) == 0;
  };
  // Around the sides of tiles, which are 32, 64 and 128 elements; rows too short for tiles.
  const int64_t sizes[][2] = {{8, 8}, {7, 200}, {200, 7}, {31, 33}, {64, 32}, {128, 256}, {130, 66}, {257, 20}};
  const int orders[][3] = {{0, 2, 1}, {2, 0, 1}, {2, 1, 0}};
  for (DType type : types)
    for (const auto& size : sizes)
      for (int64_t outer : {1, 3}) {
        const int64_t rows = size[0], columns = size[1];
        Tensor host(std::make_shared<Allocator>(), type, {outer, rows, columns});
        for (int64_t i = 0; i < host.bytes(); ++i)
          host.bytes_data()[i] = std::byte(type == DType::boolean ? i % 3 == 1 : i * 7 % 251);
        Tensor there = host.to(device);
        INFO(name(type) << to_string(host.shape()));
        for (const auto& order : orders)
          for (int64_t begin : {0, 1, 4}) {  // aligned or not, and with an odd or an even rest
            auto part = [&](const Tensor& t) { return t.narrow(2, begin, columns - begin - begin / 4).permute(order); };
            CHECK(same(part(there).clone(), part(host).clone()));
            // Into a part of something larger, of which nothing else is written.
            Shape shape = part(host).shape();
            Tensor wide(host.allocator(), type, {shape[0], shape[1], shape[2] + 4 + shape[2] % 2}), target;
            std::memset(wide.bytes_data(), 1, size_t(wide.bytes()));
            target = wide.to(device);
            copy(part(there), target.narrow(2, begin, shape[2]));
            copy(part(host), wide.narrow(2, begin, shape[2]));
            CHECK(same(target, wide));
          }
      }
}

TEST_CASE("cuda: tensors are filled and scaled") {
  auto device = device_memory();
  for (DType type : types)
    for (int64_t n : {0, 1, 1000}) {
      Tensor t(device, type, {n});
      fill(t, 1);
      CHECK(elements(t) == std::vector<double>(size_t(n), 1));
      CHECK(elements(Tensor::zeros(device, type, {n})) == std::vector<double>(size_t(n), 0));
      if (!is_floating(type)) continue;
      scale(t, -2.5);
      CHECK(elements(t) == std::vector<double>(size_t(n), -2.5));
    }
  for (Reduce r : {Reduce::sum, Reduce::avg, Reduce::product, Reduce::min, Reduce::max})
    for (DType type : types) {
      Tensor here(std::make_shared<Allocator>(), type, {3}), there(device, type, {3});
      fill_identity(here, r), fill_identity(there, r);
      CHECK(elements(here) == elements(there));
    }
}

TEST_CASE("cuda: memory is counted, reused at its address, split and joined") {
  auto device = device_memory();
  auto address = [](const Tensor& t) { return t.bytes_data(); };
  auto bytes = [&](int64_t n) { return Tensor(device, DType::boolean, {n}); };
  {
    Tensor a = bytes(1000), b = bytes(1000);
    CHECK(reinterpret_cast<uintptr_t>(address(a)) % 256 == 0);
    CHECK(address(b) == address(a) + 1024);
    CHECK(device->bytes_in_use() == 2000);
    std::byte* first = address(a);
    a = {};
    CHECK(address(bytes(500)) == first);
    b = {};
    CHECK(address(bytes(2048)) == first);  // the two are one again
  }
  CHECK(device->bytes_in_use() == 0);
  CHECK(device->peak_bytes() == 2048);
  std::byte* large = address(bytes(int64_t(3) << 20));
  CHECK(address(bytes((int64_t(3) << 20) + 1)) == large);  // segments are multiples of 2 MiB
  CHECK(bytes(0).numel() == 0);
  const int64_t too_much = int64_t(1) << 46;
  CHECK_THROWS_WITH(bytes(too_much),
                    Contains("[cuda] no memory for 70368744177664 bytes: the tensors of this rank hold 0, "));
  CHECK_THROWS_WITH(cuda::make_allocator(1000), Contains("[cuda] there is no device 1000: the number of devices is "));
}

TEST_CASE("cuda: a private pool serves only between its begin and end") {
  auto device = device_memory();
  auto block = [&] { return Tensor(device, DType::f32, {1000}); };
  std::byte* mine = nullptr;
  {
    cuda::PrivatePool pool(device);
    std::byte* before = block().bytes_data();
    pool.begin();
    mine = block().bytes_data();
    CHECK(mine != before);
    Tensor kept = block();
    CHECK(kept.bytes_data() == mine);
    pool.end();
    CHECK(block().bytes_data() == before);
    kept = {};
    CHECK(block().bytes_data() == before);
    pool.begin();
    CHECK(block().bytes_data() == mine);
    pool.end();
  }
  // Both segments of 2 MiB are everybody's: four blocks of half a segment fill them.
  std::vector<Tensor> all;
  for (int i = 0; i < 4; ++i) all.emplace_back(device, DType::boolean, Shape{1 << 20});
  CHECK(std::any_of(all.begin(), all.end(), [&](const Tensor& t) { return t.bytes_data() == mine; }));
}

TEST_CASE("cuda: created tensors, random numbers and replicas are as on the CPU") {
  auto on = [](Device device) {
    auto rank = Rank::single(device);
    DeviceMesh m(*rank, "x=1");
    std::vector<std::vector<double>> all;
    for (const DistributedTensor& x :
         {zeros(m, "f32[3,4]"), full(m, "i64[5]", int64_t(1) << 60), arange(m, "f64[7]"), eye(m, "bool[3,4]"),
          ones(m, "bf16[6]"), rand(m, "f32[50]", {.seed = 3}), bernoulli(m, "bool[50]", {.seed = 4}, 0.3)}) {
      verify_replicas(x, "x");
      all.push_back(elements(x.full_tensor()));
    }
    return all;
  };
  CHECK(on(Device::cuda) == on(Device::cpu));
}

TEST_CASE("cuda: ranks that share a device redistribute as on the CPU, to the bit") {
  struct Case {
    const char *mesh, *from, *to;
  };
  const Case cases[] = {{"x=2", "x=Shard(0)", "x=Replicate"},
                        {"x=3", "x=Shard(0)", "x=Shard(1)"},
                        {"x=3", "x=Partial(sum)", "x=Replicate"},
                        {"x=3", "x=Partial(sum)", "x=Shard(1)"},
                        {"x=9", "x=Partial(sum)", "x=Replicate"},
                        {"x=9", "x=Partial(avg)", "x=Shard(0)"},
                        {"x=2", "x=Replicate", "x=Partial(avg)"},
                        {"x=2", "x=Partial(max)", "x=Replicate"},
                        {"x=4", "x=Partial(min)", "x=Shard(0)"},
                        {"x=2,y=2", "x=Shard(0) y=Shard(1)", "x=Shard(1) y=Shard(0)"},
                        {"x=2,y=2", "x=Partial(sum) y=Shard(0)", "x=Shard(1)"}};
  for (const Case& c : cases)
    for (DType type : {DType::f32, DType::f64, DType::bf16, DType::i64}) {
      if (type == DType::i64 && std::string(c.from + std::string(c.to)).find("avg") != std::string::npos) continue;
      for (Shape shape : {Shape{5, 7}, Shape{1, 2}, Shape{0, 3}}) {
        auto on = [&](Device device) {
          MeshShape mesh = MeshShape::parse(c.mesh);
          std::vector<std::vector<double>> parts(size_t(mesh.world()));
          launch(mesh.world(),
                 [&](Rank& rank) {
                   DeviceMesh m(rank, mesh);
                   SpecHandle spec = m.intern({type, shape, parse_layout(c.from, mesh, shape.dims())});
                   Tensor local(std::make_shared<Allocator>(), type == DType::bf16 ? DType::f32 : type,
                                spec->local_shape);
                   for (int64_t i = 0; i < local.numel(); ++i) {
                     double v = std::sin(1.0 + double(i) + 3.7 * rank.rank());
                     if (local.dtype() == DType::f32) local.data<float>()[i] = float(v);
                     if (type == DType::f64) local.data<double>()[i] = v;
                     if (type == DType::i64) local.data<int64_t>()[i] = int64_t(v * 100);
                   }
                   if (type == DType::bf16) local = local.to(spec->local_dtype);
                   if (device == Device::cuda) local = local.to(rank.allocator());
                   parts[size_t(rank.rank())] =
                       elements(DistributedTensor::empty(m, spec, local).redistribute(c.to).local());
                 },
                 {.deadline = std::chrono::minutes(1), .threads = 1, .device = device});
          return parts;
        };
        INFO(c.mesh << ": " << c.from << " to " << c.to << ", " << name(type) << to_string(shape));
        CHECK(on(Device::cuda) == on(Device::cpu));
      }
    }
}

TEST_CASE("cuda: cards leave contributions of bf16 in float32, and take them") {
  auto on = [](Device device, DType type) {
    std::vector<std::vector<double>> results;
    launch(2,
           [&](Rank& rank) {
             DeviceMesh mesh(rank, "x=2");
             auto tensor = [&](const Shape& shape, const char* layout) {
               Tensor t(std::make_shared<Allocator>(), DType::f32, shape);
               for (int64_t i = 0; i < t.numel(); ++i) t.data<float>()[i] = float(std::sin(1.0 + double(i)));
               return ops::cast(DistributedTensor::distribute(t, mesh, layout), type);
             };
             auto x = tensor({3, 8}, "x=Shard(1)"), w = tensor({5, 8}, "x=Shard(1)"), bias = tensor({5}, "x=Replicate");
             auto y = tensor({3, 5}, "x=Replicate"), table = tensor({6, 5}, "x=Shard(0)");
             auto ids = DistributedTensor::distribute(Tensor::of<int64_t>({3}, {5, 0, 4}), mesh, "x=Replicate");
             DistributedTensor product = ops::linear(x, w);
             std::vector<DistributedTensor> list{product,
                                                 ops::linear(x, w, bias),
                                                 ops::matmul(x, ops::transpose(w, 0, 1)),
                                                 ops::embedding(ids, table),
                                                 ops::add(product, product),
                                                 ops::mul(product, y),
                                                 ops::mul(product, 3),
                                                 ops::transpose(product, 0, 1),
                                                 ops::matmul(product, ops::transpose(y, 0, 1)),
                                                 ops::sum(x, {1}),
                                                 ops::cast(product, type == DType::f32 ? DType::f64 : DType::f32)};
             for (const DistributedTensor& z : list) {
               check(z.layout().partial, "{} is no contribution", to_string(z));
               check(z.local().dtype() == (z.dtype() == DType::bf16 ? DType::f32 : z.dtype()), "{}", to_string(z));
               std::vector<double> whole = elements(z.full_tensor());
               if (rank.rank() == 0) results.push_back(whole);
             }
           },
           {.deadline = std::chrono::minutes(1), .threads = 1, .device = device});
    return results;
  };
  auto cpu = on(Device::cpu, DType::bf16), cuda = on(Device::cuda, DType::bf16);
  REQUIRE(cpu.size() == cuda.size());
  for (size_t i = 0; i < cpu.size(); ++i)
    for (size_t j = 0; j < cpu[i].size(); ++j) {
      INFO("result " << i << ", element " << j);
      CHECK(cuda[i][j] == Approx(cpu[i][j]).epsilon(0x1p-8));  // a rounding apart where they add in other orders
    }
}

TEST_CASE("cuda: a rank that fails frees the others, and calls that disagree are errors on all") {
  auto options = LaunchOptions{.deadline = std::chrono::seconds(20), .threads = 1, .device = Device::cuda};
  CHECK_THAT(error_of([&] {
               launch(
                   3,
                   [](Rank& rank) {
                     DeviceMesh m(rank, "x=3");
                     if (rank.rank() == 1) fail("stop here");
                     DistributedTensor::empty(m, {DType::f32, {3}, parse_layout("x=Partial(sum)", m.shape(), 1)})
                         .full_tensor();
                   },
                   options);
             }),
             Contains("stop here (rank 1 of 3)"));
  CHECK_THAT(
      error_of([&] {
        launch(
            2,
            [](Rank& rank) {
              DeviceMesh m(rank, "x=2");
              Layout partial = parse_layout("x=Partial(sum)", m.shape(), 1);
              DistributedTensor::empty(m, {DType::f32, {3 + rank.rank()}, partial}).full_tensor();
            },
            options);
      }),
      Contains("[collective] ranks 0 and 1 disagree: \"all_reduce(sum) f32[3]\" and \"all_reduce(sum) f32[4]\""));
}

TEST_CASE("cuda: a part is on its rank's device") {
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "x=1");
  Tensor host = counted(DType::f32, {2, 3});
  CHECK_THROWS_WITH(
      DistributedTensor::from_local(host, mesh, {}, {2, 3}),
      "[from_local] the part f32[2,3] is on cpu, but the tensors of rank 0 are on cuda:0: use .to(rank.allocator())");
  CHECK(elements(DistributedTensor::from_local(host.to(rank->allocator()), mesh, {}, {2, 3}).full_tensor()) ==
        elements(host));
  if (cuda::device_count() < 2) return;
  Tensor elsewhere = host.to(cuda::make_allocator(1));
  cuda::use_device(0);
  CHECK_THROWS_WITH(DistributedTensor::from_local(elsewhere, mesh, {}, {2, 3}),
                    Contains("is on cuda:1, but the tensors of rank 0 are on cuda:0"));
}

TEST_CASE("cuda: an asynchronous copy is in order with the kernels of its rank") {
  auto rank = Rank::single(Device::cuda);
  const auto &device = rank->allocator(), &pinned = rank->host_allocator();
  CHECK((pinned->device() == Device::cpu && pinned->is_pinned()));
  for (int64_t n : {0, 1, 1000, 300000}) {
    auto values = [&](double x) { return std::vector<double>(size_t(n), x); };
    Tensor x(device, DType::f32, {n}), out(pinned, DType::f32, {n}), back(device, DType::f32, {n});
    fill(out, -1);
    fill(x, 3);  // to the host after what was called before
    AsyncCopy away = copy_async(x, out);
    away.wait();
    fill(x, 4);  // comes after the copy
    away.synchronize();
    CHECK(away.is_done());
    CHECK(elements(out) == values(3));
    CHECK(elements(x) == values(4));

    fill(back, 7);  // before the copy
    AsyncCopy home = copy_async(out, back);
    Tensor other(device, DType::f32, {n});
    fill(other, 1);  // goes on beside it
    home.wait();
    scale(back, 2);  // after it
    CHECK(elements(back) == values(6));
    CHECK(elements(other) == values(1));
    home.synchronize();
  }
}

TEST_CASE("cuda: what an asynchronous copy uses is not used by others before it is over") {
  auto rank = Rank::single(Device::cuda);
  const auto &device = rank->allocator(), &pinned = rank->host_allocator();
  const int64_t n = 1000;
  Tensor out(pinned, DType::f32, {n});
  std::byte* there = nullptr;
  {  // let go of at once, with the tensor that is read
    Tensor x(device, DType::f32, {n});
    there = x.bytes_data();
    fill(x, 3);
    static_cast<void>(copy_async(x, out));
  }
  Tensor next(device, DType::f32, {n});
  REQUIRE(next.bytes_data() == there);
  fill(next, 4);
  rank->synchronize();
  CHECK(elements(out) == std::vector<double>(n, 3));
  // Nor is host memory.
  Tensor x(device, DType::f32, {n});
  std::byte* here = nullptr;
  {
    Tensor from(pinned, DType::f32, {n});
    here = from.bytes_data();
    fill(from, 5);
    static_cast<void>(copy_async(from, x));
  }
  Tensor second(pinned, DType::f32, {n});
  fill(second, 6);
  CHECK(elements(x) == std::vector<double>(n, 5));
  rank->synchronize();
  second = Tensor();
  for (int i = 0; i < 3; ++i) {  // it is free again when the copy is over
    static_cast<void>(copy_async(x, out));
    rank->synchronize();
  }
  second = Tensor(pinned, DType::f32, {n});
  CHECK(second.bytes_data() == here);
  // An ordinary copy has read it when it returns.
  fill(second, 8);
  copy(second, x);
  fill(second, 9);
  CHECK(elements(x) == std::vector<double>(n, 8));
}

TEST_CASE("cuda: an asynchronous copy that cannot be one is an error") {
  auto rank = Rank::single(Device::cuda);
  const auto &device = rank->allocator(), &pinned = rank->host_allocator();
  Tensor x(device, DType::f32, {4}), host = counted(DType::f32, {4});
  CHECK_THROWS_WITH(copy_async(x, host),
                    "[copy_async] f32[4] on cuda to f32[4] on cpu: the host tensor is not in pinned "
                    "memory; make it with the rank's host_allocator()");
  CHECK_THROWS_WITH(copy_async(x, x),
                    "[copy_async] f32[4] on cuda to f32[4] on cuda: on one device copy() is in order "
                    "with kernels already");
  Tensor out(pinned, DType::f32, {4});
  cuda::Graph::begin(device->stream());
  CHECK_THROWS_WITH(copy_async(x, out), Contains("not while a graph is captured; use copy()"));
  cuda::Graph::abandon(device->stream());
  CHECK_THROWS_WITH(
      Tensor(pinned, DType::f32, {int64_t(1) << 48}),
      Contains("[cuda] no pinned host memory for 1125899906842624 bytes: the tensors there hold 16; offload "
               "less"));
}
