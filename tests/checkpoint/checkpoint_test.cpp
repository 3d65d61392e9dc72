#include "nn/checkpoint/checkpoint_folder.h"

#include <signal.h>
#include <sys/resource.h>

#include <atomic>
#include <thread>

#include "nn/checkpoint/crc32c.h"
#include "nn/checkpoint/pieces.h"
#include "nn/train/adamw.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;
namespace fs = std::filesystem;

namespace {

// Changes one byte of a file, counted from the end where negative.
void flip(const fs::path& path, int64_t at) {
  std::string text = read_file(path);
  text[size_t(at < 0 ? int64_t(text.size()) + at : at)] ^= 1;
  std::ofstream(path, std::ios::binary) << text;
}

// A checkpoint of x f32[6,8], of numbers(48, seed), split over two ranks.
void save_one(const fs::path& path, int seed = 1) {
  on_mesh("x=2", [&](const DeviceMesh& m) {
    DistributedTensor x = DistributedTensor::distribute(f32({6, 8}, seed), m, {Shard(0)});
    save_checkpoint(m, path, {{"x", x}, {"epoch", 3}});
  });
}

std::vector<double> parameters_of(Module& model) {
  std::vector<double> v;
  for (Parameter* p : model.parameters())
    for (double x : values(p->stored().full_tensor())) v.push_back(x);
  return v;
}

Box box_of(std::initializer_list<Range> ranges) {
  Box b;
  for (Range r : ranges) b[b.dims++] = r;
  return b;
}

}  // namespace

TEST_CASE("pieces tile every tensor, replicas once, on any mesh") {
  const char* layouts[] = {"",          "a=Shard(0)", "b=Shard(0)", "b=Shard(0) a=Shard(0)", "a=Shard(1) b=Shard(0)",
                           "b=Shard(1)"};
  for (const char* mesh_text : {"a=1,b=1", "a=2,b=1", "a=2,b=3", "a=4,b=2"})
    for (const char* text : layouts)
      for (const Shape& shape : {Shape{5, 7}, Shape{1, 1}, Shape{3, 0}, Shape{1000, 600}, Shape{7, 300000}}) {
        MeshShape mesh = MeshShape::parse(mesh_text);
        TensorSpec spec{DType::f32, shape, parse_layout(text, mesh, 2)};
        std::vector<Piece> pieces = pieces_of(mesh, spec);
        std::vector<Box> boxes;
        for (const Piece& p : pieces) {
          boxes.push_back(p.box);
          Box own = local_box(mesh, shape, spec.layout, p.rank);
          CHECK(intersection(own, p.box) == p.box);  // nothing moves
        }
        INFO(to_string(spec, mesh));
        CHECK(why_no_tiling(shape, boxes) == "");
        if (shape == Shape{1000, 600}) CHECK(int(pieces.size()) == mesh.world());  // the work is shared
      }
}

TEST_CASE("boxes that do not tile are found out") {
  Shape shape{4, 6};
  auto left = box_of({{0, 4}, {0, 3}}), right = box_of({{0, 4}, {3, 6}}), corner = box_of({{2, 4}, {3, 6}});
  struct Case {
    std::vector<Box> boxes;
    std::string error;
  };
  const Case cases[] = {{{left, right}, ""},
                        {{right, left}, ""},
                        {{left}, "[0:4,0:3] alone is to cover [0:4,0:6]"},
                        {{left, corner}, "[2:4,3:6] alone is to cover [0:4,3:6]"},
                        {{left, right, corner}, "overlap, or are cut by no line"},
                        {{}, "nothing covers [0:4,0:6]"},
                        {{box_of({{0, 4}, {0, 7}})}, "[0:4,0:7] is no part of [4,6]"},
                        {{box_of({{0, 4}})}, "[0:4] is no part of [4,6]"},
                        {{box_of({{2, 2}, {0, 6}})}, "[2:2,0:6] is no part of [4,6]"}};
  for (const Case& c : cases) {
    std::string error = why_no_tiling(shape, c.boxes);
    CHECK_THAT(error, Contains(c.error));
    CHECK(error.empty() == c.error.empty());
  }
}

TEST_CASE("named tensors and values come back on any mesh and layout") {
  Folder folder;
  struct Place {
    const char *mesh, *layout;
  };
  const Place places[] = {{"a=1", ""},
                          {"a=4", "a=Shard(0)"},
                          {"a=3", "a=Shard(1)"},
                          {"a=2,b=2", "b=Shard(0) a=Shard(0)"},
                          {"a=2,b=2", "a=Shard(1)"},
                          {"a=4", ""}};
  auto big = f32({600, 700}, 1);  // shared by replicas
  for (const Place& from : places) {
    fs::path path = folder.path / "one";
    on_mesh(from.mesh, [&](const DeviceMesh& m) {
      auto tensor = [&](const Tensor& t) {
        return DistributedTensor::distribute(t, m, parse_layout(from.layout, m.shape(), t.dims()));
      };
      auto written = save_checkpoint(m, path,
                                     {{"x", tensor(f32({5, 7}, 2))},
                                      {"big", tensor(big)},
                                      {"empty", DistributedTensor::distribute(f32({0, 3}, 1), m, Layout())},
                                      {"number", DistributedTensor::distribute(f64({}, 5), m, Layout())},
                                      {"epoch", 3},
                                      {"notes", {{"a", {1, 2.5, nullptr}}}}});
      check(written.bytes == 4 * (35 + 600 * 700) + 8, "{} bytes", written.bytes);
      check(written.stalled_seconds > 0 && written.written_seconds > 0, "no time");
    });
    for (const Place& to : places) {
      INFO(from.mesh << " " << from.layout << " to " << to.mesh << " " << to.layout);
      on_mesh(to.mesh, [&](const DeviceMesh& m) {
        auto empty = [&](const Shape& s) {
          return DistributedTensor::empty(m, TensorSpec{DType::f32, s, parse_layout(to.layout, m.shape(), 2)});
        };
        Checkpoint c(path);
        c.verify(m);
        DistributedTensor x = empty({5, 7}), y = empty({600, 700}),
                          n = DistributedTensor::empty(m, TensorSpec{DType::f64, {}, {}});
        uint32_t version = x.version();
        CommLog log(m.rank_state());
        c.load({{"x", x}, {"big", y}, {"number", n}});
        for (const auto& e : log.entries())
          check(e.reason == "agreement on errors", "{}", to_string(e));  // values do not move
        check(x.version() > version, "the version");
        check(values(x.full_tensor()) == values(f32({5, 7}, 2)), "x");
        check(values(y.full_tensor()) == values(big), "big");
        check(n.item() == values(f64({}, 5))[0], "number");
        check(c.value("epoch") == 3 && c.value("notes")["a"][1] == 2.5 && c.mesh() == from.mesh, "values");
      });
      Checkpoint(path).verify();
      CHECK(values(Checkpoint(path).read("x")) == values(f32({5, 7}, 2)));
    }
  }
}

TEST_CASE("a model and its optimizer go on from a checkpoint, bit for bit, on another mesh") {
  Folder folder;
  auto run = [&](const char* mesh, Placement place, bool load, int to) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Mlp model(m, true);
                     model.up.weight.place(0, place);
                     materialize(model, load ? 99 : 3);
                     AdamW adamw(model.parameters(), {});
                     if (load) {
                       Checkpoint c(folder.path / "half");
                       c.load({{"model", model}, {"optimizer", adamw}});
                       check(adamw.steps() == 3, "{} steps", adamw.steps());
                     }
                     while (adamw.steps() < to) {
                       std::vector<DistributedTensor> g;
                       for (Parameter* p : model.parameters())
                         g.push_back(DistributedTensor::distribute(
                             f32(p->shape(), int(adamw.steps()) * 7 + int(g.size())), m, p->stored().layout()));
                       adamw.step(g, 0.01);
                     }
                     if (!load && to == 3)
                       save_checkpoint(m, folder.path / "half", {{"model", model}, {"optimizer", adamw}});
                     return parameters_of(model);
                   })
        .back();
  };
  auto whole = run("x=1", Replicate(), false, 6);
  for (const char* from : {"x=1", "x=4"}) {
    run(from, Shard(1), false, 3);
    for (const char* mesh : {"x=1", "x=2", "x=3"})
      for (Placement p : {Shard(0), Shard(1)}) CHECK(run(mesh, p, true, 6) == whole);
  }
}

TEST_CASE("the optimizer's state is not restored to NaN: every element is what was saved, on any mesh") {
  Folder folder;
  auto states = [](AdamW& adamw) {
    std::vector<double> all;
    for (const Optimizer::State& s : adamw.state())
      for (double x : values(s.tensor.full_tensor())) all.push_back(x);
    return all;
  };
  for (int steps : {0, 2}) {  // also of an optimizer that has not stepped
    fs::path path = folder.path / fmt::format("{}", steps);
    std::vector<double> saved = on_mesh("x=4", [&](const DeviceMesh& m) {
      Mlp model(m, true);  // with parts that no mesh here divides
      model.up.weight.place(0, Shard(0));
      materialize(model, 3);
      AdamW adamw(model.parameters(), {});
      for (int i = 0; i < steps; ++i) {
        std::vector<DistributedTensor> g;
        for (Parameter* p : model.parameters())
          g.push_back(DistributedTensor::distribute(f32(p->shape(), i), m, p->stored().layout()));
        adamw.step(g, 0.01);
      }
      save_checkpoint(m, path, {{"optimizer", adamw}});
      return states(adamw);
    })[0];
    CHECK(!saved.empty());
    CHECK(std::all_of(saved.begin(), saved.end(), [](double x) { return std::isfinite(x); }));
    for (const char* mesh : {"x=1", "x=2", "x=3", "x=5"})
      for (Placement p : {Placement(Replicate()), Placement(Shard(0)), Placement(Shard(1))}) {
        INFO(mesh << " " << to_string(p) << " after " << steps << " steps");
        CHECK(on_mesh(mesh, [&](const DeviceMesh& m) {
                Mlp model(m, true);
                model.up.weight.place(0, p);
                materialize(model, 5);
                AdamW adamw(model.parameters(), {});
                for (Optimizer::State s : adamw.state())
                  if (s.tensor.local().numel() > 0) fill(s.tensor.local_for_writing(), NAN);
                Checkpoint(path).load({{"optimizer", adamw}});
                check(adamw.steps() == steps, "{} steps", adamw.steps());
                return states(adamw);
              }).back() == saved);
      }
  }
}

TEST_CASE("what is saved is what was there when begin() was called") {
  Folder folder;
  on_mesh("x=2", [&](const DeviceMesh& m) {
    DistributedTensor x = DistributedTensor::distribute(f32({6, 8}, 1), m, {Shard(0)});
    CheckpointWriter writer(m);
    check(!writer.wait(), "nothing was begun");
    for (int i = 0; i < 3; ++i) {
      writer.begin(folder.path / fmt::format("{}", i), {{"x", x}});
      fill(x.local_for_writing(), i);
    }
    check(writer.wait() && writer.is_done() && !writer.wait(), "wait");
  });
  CHECK(values(Checkpoint(folder.path / "0").read("x")) == values(f32({6, 8}, 1)));
  CHECK(values(Checkpoint(folder.path / "2").read("x")) == std::vector<double>(48, 1));
}

TEST_CASE("a damaged checkpoint is an error that names the file") {
  struct Case {
    std::function<void(const fs::path&)> damage;
    std::string error;
  };
  const Case cases[] = {
      {[](const fs::path& p) { flip(p / "rank-00001.safetensors", -5); },
       "rank-00001.safetensors is damaged: the checksum of x differs"},
      {[](const fs::path& p) { fs::resize_file(p / "rank-00000.safetensors", 150); }, "rank-00000.safetensors"},
      {[](const fs::path& p) { fs::resize_file(p / "rank-00000.safetensors", 0); }, "too short for a safetensors file"},
      {[](const fs::path& p) { fs::remove(p / "rank-00001.safetensors"); }, "rank-00001.safetensors is missing"},
      {[](const fs::path& p) {
         fs::copy_file(p / "rank-00000.safetensors", p / "rank-00001.safetensors",
                       fs::copy_options::overwrite_existing);
       },
       "is damaged"},
      {[](const fs::path& p) { fs::remove(p / "checkpoint.json"); }, "no checkpoint: there is no checkpoint.json"},
      {[](const fs::path& p) { fs::resize_file(p / "checkpoint.json", 100); }, "is not JSON"},
      {[](const fs::path& p) { std::ofstream(p / "checkpoint.json") << "{}"; },
       "checkpoint.json is not of the format \"dtensor checkpoint 1\""},
      {[](const fs::path& p) {
         std::string text = read_file(p / "checkpoint.json");
         text.replace(text.find("\"epoch\": 3"), 10, "\"epoch\": 4");
         std::ofstream(p / "checkpoint.json") << text;
       },
       "checkpoint.json is not as it was written: its checksum differs"},
      {[](const fs::path& p) { std::ofstream(p / "checkpoint.json") << R"({"format": "dtensor checkpoint 1"})"; },
       "checkpoint.json is not as it was written: "},
  };
  for (const Case& c : cases) {
    Folder folder;
    save_one(folder.path / "c");
    c.damage(folder.path / "c");
    std::string error = error_of([&] { Checkpoint(folder.path / "c").verify(); });
    CHECK_THAT(error, Contains(c.error));
  }
}

TEST_CASE("a checkpoint.json that says what cannot be is an error, whatever its checksum") {
  struct Case {
    const char *at, *value, *error;
  };
  const Case cases[] = {
      {"/tensors/x/dtype", "\"f31\"", "x has the unknown element type \"f31\""},
      {"/tensors/x/shape", "[6,-8]", "x has the shape [6,-8], which no tensor has"},
      {"/tensors/x/shape", "[6,8.5]", "x has the shape [6,8.5], which no tensor has"},
      {"/tensors/x/shape", "48", "x has the shape 48, which no tensor has"},
      {"/tensors/x/shape", "[1,1,1,1,1,1,1,6,8]", "x has the shape [1,1,1,1,1,1,1,6,8], which no tensor has"},
      {"/tensors/x/shape", "[4611686018427387904,0,4]",
       "x has the shape [4611686018427387904,0,4], which no tensor has"},
      {"/tensors/x/shape", "[6,9]", "the pieces of x do not tile [6,9]"},
      {"/tensors/x/pieces/0/box", "[[0.5,3],[0,8]]", "x has the box [[0.5,3],[0,8]], which no tensor has"},
      {"/tensors/x/pieces/0/box", "[[0,3],[0,8],[0,1],[0,1],[0,1],[0,1],[0,1],[0,1],[0,1]]", "which no tensor has"},
      {"/tensors/x/pieces/0/box", "[[0],[0,8]]", "checkpoint.json is not as it was written: "},
      {"/tensors/x/pieces/0/crc32c", "\"12345xyz\"", "x has the checksum \"12345xyz\""},
      {"/tensors/x/pieces/0/file", "\"../rank-00000.safetensors\"", "x is in ../rank-00000.safetensors"},
      {"/tensors/x/pieces/0/file", "\"rank-00001.safetensors\"",
       "rank-00001.safetensors is damaged: the checksum of x differs"},
      {"/tensors/x", "3", "checkpoint.json is not as it was written: "},
      {"/mesh", "3", "checkpoint.json is not as it was written: "},
  };
  for (const Case& c : cases) {
    INFO(c.at << " " << c.value);
    Folder folder;
    save_one(folder.path / "c");
    auto index = json(read_file(folder.path / "c" / "checkpoint.json"));
    index[nlohmann::ordered_json::json_pointer(c.at)] = json(c.value);
    index.erase("crc32c");
    std::string text = index.dump();
    index["crc32c"] = fmt::format("{:08x}", crc32c(std::as_bytes(std::span(text))));
    std::ofstream(folder.path / "c" / "checkpoint.json") << index.dump();
    CHECK_THAT(error_of([&] { Checkpoint(folder.path / "c").verify(); }),
               StartsWith("[checkpoint] ") && Contains("/c: ") && Contains(c.error));
  }
}

TEST_CASE("errors of saving and loading") {
  Folder folder;
  save_one(folder.path / "c");
  Checkpoint c(folder.path / "c");
  CHECK_THAT(error_of([&] { c.value("epoc"); }), Contains("there is no value \"epoc\"; the nearest is \"epoch\""));
  CHECK_THAT(error_of([&] { c.read("y"); }), Contains("there is no tensor \"y\""));
  on_mesh("x=1", [&](const DeviceMesh& m) {
    auto expect = [](const std::string& error, const std::string& text) {
      check(error.find(text) != error.npos, "{} instead of {}", error, text);
    };
    auto empty = [&](DType t, const Shape& s) { return DistributedTensor::empty(m, TensorSpec{t, s, {}}); };
    expect(error_of([&] {
             c.load({{"x", empty(DType::f32, {8, 6})}});
           }),
           "x is f32[6,8], but f32[8,6] x=Replicate is to be loaded");
    expect(error_of([&] {
             c.load({{"x", empty(DType::f64, {6, 8})}});
           }),
           "x is f32[6,8], but f64[6,8] x=Replicate is to be loaded");
    expect(error_of([&] { c.load({{"epoch", 3}}); }), "\"epoch\" is a JSON value: read it with value()");
    Tensor t(std::make_shared<Allocator>(), DType::f64, {6, 8});
    expect(error_of([&] { c.read("x", whole_box({6, 8}), t); }), "x is f32, but f64 is wanted");
    DistributedTensor x = empty(DType::f32, {2});
    auto path = folder.path / "d";
    expect(error_of([&] {
             save_checkpoint(m, path, {{"x", x}, {"x", 3}});
           }),
           "[checkpoint] two things are saved under \"x\"");
    expect(error_of([&] { save_checkpoint(m, path, {{"", x}}); }), "[checkpoint] a key is empty");
    expect(error_of([&] { save_checkpoint(m, path, {{"x", DistributedTensor()}}); }), "undefined");
    check(!fs::exists(path), "something was written");
    struct Small : Mlp {
      explicit Small(const DeviceMesh& mesh) : Mlp(mesh, true) {}
    } with_bias(m);
    Mlp without(m);
    materialize(with_bias, 1), materialize(without, 1);
    save_checkpoint(m, path, {{"model", with_bias}});
    expect(error_of([&] {
             Checkpoint(path).load({{"model", without}});
           }),
           "which \"model\" has not: is this another model's?");
    save_checkpoint(m, path, {{"model", without}});  // replaces
    expect(error_of([&] { Checkpoint(path).load({{"model", with_bias}}); }), "there is no tensor \"model.up.bias\"");
    expect(error_of([&] {
             save_checkpoint(m, folder.write("file", "") + "/c", {{"x", x}});
           }),
           "[save_checkpoint] cannot make the folder ");
  });
  on_mesh("x=2", [&](const DeviceMesh& m) {
    auto expect = [](const std::string& error, const std::string& text) {
      check(error.find(text) != error.npos, "{} instead of {}", error, text);
    };
    DistributedTensor partial = DistributedTensor::empty(m, TensorSpec{DType::f32, {6, 8}, {Partial()}});
    expect(error_of([&] {
             save_checkpoint(m, folder.path / "p", {{"x", partial}});
           }),
           "[checkpoint] f32[6,8] x=Partial(sum) is Partial: redistribute it first");
    expect(error_of([&] { c.load({{"x", partial}}); }), "which is Partial");
  });
  auto meta = Rank::recorded(2);
  DeviceMesh m(*meta, "x=2");
  DistributedTensor x = DistributedTensor::empty(m, TensorSpec{DType::f32, {6, 8}, {}});
  CHECK_THAT(error_of([&] {
               save_checkpoint(m, folder.path / "m", {{"x", x}});
             }),
             Contains("x is a meta tensor, which has no value"));
  auto other = Rank::single();
  DistributedTensor y = DistributedTensor::empty(DeviceMesh(*other, "y=1"), TensorSpec{DType::f32, {2}, {}});
  auto one = Rank::single();
  CHECK_THAT(error_of([&] {
               save_checkpoint(DeviceMesh(*one, "x=1"), folder.path / "m", {{"y", y}});
             }),
             Contains("y lies on another mesh: "));
}

TEST_CASE("a rank that cannot write ends the saving on all ranks, and what was there stays") {
  Folder folder;
  save_one(folder.path / "c");
  auto before = read_file(folder.path / "c" / "checkpoint.json");
  // As a full disk, for files of more bytes than rank 1 writes and fewer than rank 0.
  struct Full {
    rlimit old{};
    Full() {
      signal(SIGXFSZ, SIG_IGN);
      getrlimit(RLIMIT_FSIZE, &old);
      rlimit few{2500, old.rlim_max};
      setrlimit(RLIMIT_FSIZE, &few);
    }
    ~Full() { setrlimit(RLIMIT_FSIZE, &old); }
  };
  auto save = [&] {
    return on_mesh("x=2", [&](const DeviceMesh& m) {
      DistributedTensor x = DistributedTensor::distribute(f32({3, 400}, 2), m, {Shard(0)});
      return error_of([&] { save_checkpoint(m, folder.path / "c", {{"x", x}}); });
    });
  };
  {
    Full full;
    std::vector<std::string> errors = save();
    CHECK_THAT(errors[0], Contains("cannot write ") && Contains("rank-00000.safetensors.tmp: File too large"));
    CHECK(errors[1] == "rank 0 failed: " + errors[0]);
  }
  CHECK(read_file(folder.path / "c" / "checkpoint.json") == before);
  Checkpoint(folder.path / "c").verify();
  CHECK(!fs::exists(folder.path / "c.tmp"));
  CHECK(save() == std::vector<std::string>(2, ""));
  CHECK(Checkpoint(folder.path / "c").tensors().at("x").shape == Shape{3, 400});
}

TEST_CASE("a checkpoint over one that is there: at any time its folder is one of them") {
  Folder folder;
  save_one(folder / "c", 0);
  std::atomic<bool> over = false;
  int64_t looks = 0, missing = 0;
  std::thread reader([&] {
    while (!over) ++looks, missing += !fs::exists(folder / "c/checkpoint.json");
  });
  for (int seed = 1; seed <= 40; ++seed) save_one(folder / "c", seed);
  over = true;
  reader.join();
  CHECK(looks > 40);
  CHECK(missing == 0);
  CHECK(values(Checkpoint(folder / "c").read("x")) == values(f32({6, 8}, 40)));
  CHECK(std::distance(fs::directory_iterator(folder / ""), {}) == 1);
  CHECK_THAT(error_of([&] { publish_folder(folder / "none", folder / "c", "save"); }),
             StartsWith("[save] cannot exchange ") && EndsWith("/c: No such file or directory"));
}

TEST_CASE("the last checkpoints and the best are kept, and a damaged one is passed over") {
  Folder folder;
  auto steps = [&] { return checkpoint_steps(folder.path); };
  on_mesh("x=2", [&](const DeviceMesh& m) {
    DistributedTensor x = DistributedTensor::distribute(f32({6, 8}, 1), m, {Shard(0)});
    CheckpointFolder checkpoints(m, folder.path, 2);
    check(!checkpoints.newest_sound([](const std::string&) {}), "there is none yet");
    const double scores[] = {3, 1, 2, 2, 2};
    for (int64_t i = 0; i < 5; ++i) {
      fill(x.local_for_writing(), double(i));
      checkpoints.begin(10 * i, {{"x", x}}, scores[i]);
    }
    checkpoints.wait();
  });
  CHECK(steps() == std::vector<int64_t>{10, 30, 40});
  flip(checkpoint_of_step(folder.path, 40) / "rank-00001.safetensors", -1);
  std::vector<std::string> damaged;
  auto newest = [&] {
    damaged.clear();
    return on_mesh("x=3", [&](const DeviceMesh& m) {
      auto c = CheckpointFolder(m, folder.path, 2).newest_sound([&](const std::string& e) { damaged.push_back(e); });
      return c ? c->value("step").get<int>() : -1;
    });
  };
  CHECK(newest() == std::vector<int>{30, 30, 30});
  REQUIRE(damaged.size() == 1);
  CHECK_THAT(damaged[0], Contains("step-00000040") && Contains("is damaged"));
  fs::remove(checkpoint_of_step(folder.path, 30) / "checkpoint.json");
  flip(checkpoint_of_step(folder.path, 10) / "checkpoint.json", 200);
  CHECK_THAT(error_of(newest), Contains("none of the 3 checkpoints is sound"));
  CHECK(error_of([] {
          auto rank = Rank::single();
          CheckpointFolder(DeviceMesh(*rank, "x=1"), "f", -1);
        }) == "[CheckpointFolder] -1 checkpoints cannot be kept");
}
