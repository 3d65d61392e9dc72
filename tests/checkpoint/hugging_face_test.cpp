#include "nn/checkpoint/hugging_face.h"

#include "nn/json.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

TEST_CASE("weights go to a Hugging Face folder and come back on any mesh, in f32 and bf16") {
  Folder folder;
  auto run = [&](const std::string& mesh, Placement place, uint64_t seed, bool load, const std::string& from) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      Mlp model(m, true);
      model.up.weight.place(0, place);
      materialize(model, seed);
      if (load)
        load_weights(folder.path / from, model);
      else
        save_checkpoint(m, folder.path / "c", {{"model", model}});
      std::vector<double> v;
      for (Parameter* p : model.parameters())
        for (double x : values(p->stored().full_tensor())) v.push_back(x);
      return v;
    })[0];
  };
  auto before = run("x=2", Shard(0), 3, false, "");
  Checkpoint c(folder.path / "c");
  export_weights(c, "model", {{"model_type", "mlp"}, {"dtype", "float16"}}, folder.path / "f32", DType::f32);
  export_weights(c, "model", {{"model_type", "mlp"}}, folder.path / "bf16", DType::bf16);
  for (const char* mesh : {"x=1", "x=2", "x=3"}) {
    CHECK(run(mesh, Shard(1), 9, true, "f32") == before);
    CHECK(difference(run(mesh, Shard(1), 9, true, "bf16"), before) < 0x1p-8);
  }
  auto config = load_json((folder.path / "f32" / "config.json").string(), "test");
  CHECK(config == json(R"({"model_type": "mlp", "torch_dtype": "float32"})"));

  CHECK(error_of([&] { export_weights(c, "model", {}, folder.path / "x", DType::f64); }) ==
        "[export_weights] weights are written in f32 or bf16, not f64");
  CHECK_THAT(error_of([&] { export_weights(c, "net", {}, folder.path / "x", DType::f32); }),
             StartsWith("[export_weights] ") && EndsWith(" has no tensors under \"net\""));
  CHECK_THAT(error_of([&] { export_weights(c, "model", {}, folder.write("file", "") + "/x", DType::f32); }),
             StartsWith("[export_weights] cannot make the folder "));
  std::string error = error_of([&] {
    on_mesh("x=2", [&](const DeviceMesh& m) {
      Mlp without(m);
      materialize(without, 1);
      load_weights(folder.path / "f32", without);
    });
  });
  CHECK_THAT(error, Contains("[load_weights] ") && Contains(" has down.bias, which the model has not"));
}
