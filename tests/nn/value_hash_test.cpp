#include "nn/train/value_hash.h"

#include <catch2/catch.hpp>

#include <set>

#include "dtensor/creation.h"
#include "tests/dtensor/ranks.h"

using namespace dtensor;
using namespace dtensor::testing;
using Catch::Matchers::Contains;

namespace {

// The hash of one tensor of `shape`, element i of which is i / 7, changed at `changed`.
std::string hash_on(const std::string& mesh_text, const std::string& spec, int64_t changed = -1,
                    const std::string& name = "w") {
  std::string found;
  launch(MeshShape::parse(mesh_text).world(), [&](Rank& rank) {
    DeviceMesh mesh(rank, mesh_text);
    TensorSpec wanted = parse_spec(spec, mesh.shape());
    Tensor whole(rank.allocator(), wanted.dtype, wanted.shape);
    for (int64_t i = 0; i < whole.numel(); ++i) {
      float v = float(i + (i == changed)) / 7;
      whole.dtype() == DType::f32 ? void(whole.data<float>()[i] = v) : void(whole.data<BFloat16>()[i] = BFloat16(v));
    }
    DistributedTensor x = DistributedTensor::distribute(whole, mesh, wanted.layout);
    std::string hash = nn::value_hash(mesh, {{name, x}});
    if (rank.rank() == 0) found = hash;
  });
  return found;
}

}  // namespace

TEST_CASE("law 6: the hash of a value is the same on every mesh and in every layout") {
  for (const char* shape : {"f32[6,10]", "bf16[6,10]", "f32[1]", "f32[0,4]", "f32[3,5,7]"}) {
    std::string s = shape, one = hash_on("dp=1", s);
    CHECK(one.size() == 32);
    CHECK(hash_on("dp=2", s) == one);
    CHECK(hash_on("dp=2", s + " dp=Shard(0)") == one);
    CHECK(hash_on("dp=4", s + " dp=Shard(-1)") == one);  // parts that are not even, or empty
    CHECK(hash_on("dp=2,tp=2", s + " tp=Shard(0)") == one);
    CHECK(hash_on("dp=2,tp=2", s + " dp=Shard(0) tp=Shard(-1)") == one);
  }
}

TEST_CASE("another element, name, type or place is another hash") {
  std::set<std::string> hashes{hash_on("dp=2", "f32[6,10] dp=Shard(0)"),
                               hash_on("dp=2", "f32[6,10] dp=Shard(0)", 0),
                               hash_on("dp=2", "f32[6,10] dp=Shard(0)", 59),
                               hash_on("dp=2", "f32[6,10] dp=Shard(0)", -1, "v"),
                               hash_on("dp=2", "bf16[6,10]"),
                               hash_on("dp=2", "f32[6,9]")};
  CHECK(hashes.size() == 6);
}

TEST_CASE("what has no bits has no hash") {
  auto meta = Rank::recorded(2);
  DeviceMesh meta_mesh(*meta, "dp=2");
  DistributedTensor x = zeros(meta_mesh, "f32[4]");
  CHECK_THAT(error_of([&] {
               nn::value_hash(meta_mesh, {{"w", x}});
             }),
             Contains("[value_hash] w is") && Contains("it has no bits to be compared"));
}
