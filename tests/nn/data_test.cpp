#include "nn/data/packed_text.h"

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

std::vector<int64_t> ints(const Tensor& t) {
  std::vector<int64_t> v;
  for (double x : values(t)) v.push_back(int64_t(x));
  return v;
}

}  // namespace

TEST_CASE("documents are wrapped, packed and cut into windows that overlap by one") {
  Folder folder;
  std::vector<std::string> files{folder.write("a.txt", "abc"), folder.write("b.txt", std::string("\0\xff", 2)),
                                 folder.write("empty.txt", "")};
  // BOT a b c EOT BOT 0 255 EOT BOT EOT
  const std::vector<int64_t> tokens{256, 97, 98, 99, 257, 256, 0, 255, 257, 256, 257};
  auto rank = Rank::single();
  DeviceMesh m(*rank, "dp=1");
  for (int64_t seq : {1, 3, 5, 10}) {
    PackedText text(files, seq);
    CHECK(text.windows() == 10 / seq);
    CHECK(text.seq_len() == seq);
    for (int64_t step = 0; step < 3; ++step) {  // round and round
      auto batch = text.batch(m, Layout(), step, 2);
      CHECK(batch.inputs.shape() == Shape{2, seq});
      CHECK(batch.inputs.dtype() == DType::i64);
      std::vector<int64_t> inputs, targets;
      for (int64_t row = 0; row < 2; ++row)
        for (int64_t i = 0; i < seq; ++i) {
          int64_t at = (step * 2 + row) % text.windows() * seq + i;
          inputs.push_back(tokens[size_t(at)]), targets.push_back(tokens[size_t(at + 1)]);
        }
      CHECK(ints(batch.inputs.local()) == inputs);
      CHECK(ints(batch.targets.local()) == targets);
    }
  }
}

TEST_CASE("law 3: each rank reads its rows of the same batch") {
  Folder folder;
  PackedText text({folder.write("a.txt", some_text(500))}, 6);
  auto whole = [&](const char* mesh, int64_t batch_size, const char* layout) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      Layout l = parse_layout(layout, m.shape(), 2);
      auto batch = text.batch(m, l, 5, batch_size);
      check(batch.inputs.layout() == strip_narrow_axes(m.shape(), l) &&
                batch.inputs.local().shape() == batch.inputs.spec().local_shape,
            "{}", to_string(batch.inputs));
      return std::pair(ints(batch.inputs.full_tensor()), ints(batch.targets.full_tensor()));
    });
  };
  for (int64_t batch_size : {1, 6, 8}) {
    auto one = whole("dp=1", batch_size, "")[0];
    struct Case {
      const char *mesh, *layout;
    };
    for (Case c : {Case{"dp=2", "dp=Shard(0)"},
                   {"dp=4", "dp=Shard(0)"},
                   {"dp=2,tp=2", "dp=Shard(0)"},
                   {"dp=2,cp=3", "dp=Shard(0) cp=Shard(1)"}})
      for (const auto& rank : whole(c.mesh, batch_size, c.layout)) CHECK(rank == one);
  }
}

TEST_CASE("a meta batch has shapes and no bytes") {
  auto rank = Rank::recorded(4);
  DeviceMesh m(*rank, "dp=2,tp=2");
  auto batch = meta_batch(m, batch_layout(m.shape()), 8, 16);
  CHECK(to_string(batch.inputs) == "i64[8,16] dp=Shard(0) tp=Replicate");
  CHECK(to_string(batch.targets) == to_string(batch.inputs));
  CHECK(batch.inputs.is_meta());
  CHECK(batch.inputs.local().shape() == Shape{4, 16});
  CHECK(rank->allocator()->bytes_in_use() == 2 * 4 * 16 * 8);  // counted, as in a run
}

TEST_CASE("the batch is sharded over the data axes") {
  struct Case {
    const char *mesh, *layout;
  };
  for (Case c : {Case{"dp=2", "dp=Shard(0)"},
                 {"tp=2", "tp=Replicate"},
                 {"dp=2,tp=2", "dp=Shard(0) tp=Replicate"},
                 {"dp_replicate=2,dp_shard=2,tp=2", "dp_replicate=Shard(0) dp_shard=Shard(0) tp=Replicate"}})
    CHECK(to_string(batch_layout(MeshShape::parse(c.mesh)), MeshShape::parse(c.mesh)) == c.layout);
  // and over those that a plan names
  MeshShape mesh = MeshShape::parse("data=2,tp=2");
  CHECK(to_string(batch_layout(mesh, {.data_parallel = DataParallelPlan{"data"}}), mesh) ==
        "data=Shard(0) tp=Replicate");
}

TEST_CASE("errors of the data") {
  Folder folder;
  std::string file = folder.write("a.txt", "abc"), missing = (folder.path / "b.txt").string();
  CHECK(error_of([&] {
          PackedText({file, missing}, 2);
        }) == "[data] cannot read " + missing + ": no such file, or no permission");
  CHECK(error_of([&] { PackedText({file}, 5); }) ==
        "[data] 5 tokens are less than one sequence of 5 and its target: give more text, or a smaller --seq-len");
  CHECK(error_of([&] { PackedText({}, 5); }) ==
        "[data] 0 tokens are less than one sequence of 5 and its target: give more text, or a smaller --seq-len");
  CHECK(error_of([&] { PackedText({file}, 0); }) == "[data] a sequence length of 0");
  CHECK_THAT(error_of([&] { PackedText({folder.path.string()}, 2); }),
             StartsWith("[data] cannot read " + folder.path.string()));  // a folder
}
