#include "nn/data/dataset.h"

#include <sys/stat.h>

#include <thread>

#include "dtensor/launch.h"
#include "nn/data/documents.h"
#include "nn/data/loader.h"
#include "nn/data/permutation.h"
#include "tests/data/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

struct Row {
  std::vector<int64_t> inputs, targets, positions, documents;
  bool operator==(const Row&) const = default;
};
Row row(const Dataset& d, int64_t n) {
  Row r;
  for (auto* v : {&r.inputs, &r.targets, &r.positions, &r.documents}) v->resize(size_t(d.seq_len()));
  d.read(n, {r.inputs, r.targets, r.positions, r.documents});
  return r;
}

std::vector<int64_t> all_tokens(const TokenSource& s) {
  std::vector<int64_t> tokens(size_t(s.tokens()));
  if (!tokens.empty()) s.read(0, tokens);
  return tokens;
}

Dataset dataset(const TokenSource& source, DatasetOptions options) { return Dataset({{source}}, options); }

}  // namespace

TEST_CASE("a permutation of global indices is one, for every size, and another for each seed and epoch") {
  for (int64_t size : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 1000, 4097}) {
    std::vector<bool> seen(size_t(size), false);
    Permutation p(size, 42, 0);
    for (int64_t i = 0; i < size; ++i) {
      int64_t at = p(i);
      REQUIRE((at >= 0 && at < size));
      CHECK(!seen[size_t(at)]);
      seen[size_t(at)] = true;
    }
  }
  int same = 0;
  for (int64_t i = 0; i < 1000; ++i)
    same += (Permutation(1000, 42, 0)(i) == Permutation(1000, 42, 1)(i)) +
            (Permutation(1000, 42, 0)(i) == Permutation(1000, 43, 0)(i));
  CHECK(same < 12);  // two are expected
}

TEST_CASE("pack keeps positions and document numbers") {
  Folder folder;
  TokenSource source({folder.write("a.txt", "abc"), folder.write("b.txt", ""), folder.write("c.txt", "de")});
  // BOT a b c EOT BOT EOT BOT d e EOT
  CHECK(all_tokens(source) == std::vector<int64_t>{256, 97, 98, 99, 257, 256, 257, 256, 100, 101, 257});
  CHECK(source.documents() == 3);
  Dataset d = dataset(source, {.seq_len = 5});
  CHECK(d.samples() == 2);
  CHECK(dataset(source, {.seq_len = 10}).samples() == 1);  // the eleventh token is a target
  CHECK(error_of([&] { dataset(source, {.seq_len = 11}); }) ==
        "[data] 11 tokens are less than one sequence of 11 and its target: give more text, or a smaller --seq-len");
  CHECK(row(d, 0) == Row{{256, 97, 98, 99, 257}, {97, 98, 99, 257, 256}, {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}});
  CHECK(row(d, 1) == Row{{256, 257, 256, 100, 101}, {257, 256, 100, 101, 257}, {0, 1, 0, 1, 2}, {0, 0, 1, 1, 1}});
  CHECK(row(d, 3) == row(d, 1));  // the next epoch
  CHECK(row(dataset(source, {.seq_len = 3}), 1) == Row{{99, 257, 256}, {257, 256, 257}, {3, 4, 0}, {0, 0, 1}});
}

TEST_CASE("documents without tokens are counted where they stand, also files of nothing else") {
  Folder folder;
  auto shard = [&](const std::string& name, const std::vector<std::vector<int32_t>>& documents) {
    ShardWriter writer((folder.path / name).string(), 300);
    for (const auto& ids : documents) writer.add(ids);
    writer.finish();
  };
  shard("a.bin", {{}, {}, {}}), shard("b.bin", {{1, 2}, {}}), shard("c.bin", {{}, {}}), shard("d.bin", {{3}, {4, 5}});
  TokenSource source({folder.path.string()});
  CHECK(all_tokens(source) == std::vector<int64_t>{1, 2, 3, 4, 5});
  std::vector<int64_t> begins, of;
  for (int64_t d = 0; d <= source.documents(); ++d) begins.push_back(source.document_begin(d));
  for (int64_t t = 0; t < source.tokens(); ++t) of.push_back(source.document_of(t));
  CHECK(begins == std::vector<int64_t>{0, 0, 0, 0, 2, 2, 2, 2, 3, 5});
  CHECK(of == std::vector<int64_t>{3, 3, 7, 8, 8});
  Dataset packed = dataset(source, {.seq_len = 4});
  CHECK(row(packed, 0) == Row{{1, 2, 3, 4}, {2, 3, 4, 5}, {0, 1, 0, 0}, {0, 0, 1, 2}});
  CHECK(packed.max_documents() == 3);
  Row empty = row(dataset(source, {.mode = DataMode::pad, .seq_len = 2, .pad = 9}), 5);
  CHECK(empty == Row{{9, 9}, {ignored_target, ignored_target}, {0, 1}, {-1, -1}});
}

TEST_CASE("a data set knows the most documents that a sequence of it has") {
  Folder folder;
  std::vector<std::string> files;
  for (int i = 0; i < 60; ++i) files.push_back(folder.write(fmt::format("{:02}.txt", i), std::string(i * i % 7, 'a')));
  TokenSource many(files), few({files[1], files[2], files[3], files[4]});
  for (int64_t s : {1, 2, 3, 5, 8, 13, 100}) {
    INFO(s);
    for (bool mixed : {false, true}) {
      std::vector<Dataset::Part> parts{{few}};
      if (mixed) parts.push_back({many});
      if (s == 100) parts = {{many}};
      Dataset d(parts, {.seq_len = s});
      int64_t most = 0;
      for (int64_t n = 0; n < 2 * d.samples(); ++n) most = std::max(most, row(d, n).documents.back() + 1);
      CHECK(d.max_documents() == most);
    }
  }
  CHECK(dataset(many, {.mode = DataMode::pad, .seq_len = 4}).max_documents() == 1);
  TokenSource rest({folder.write("r.txt", "abcdef"), files[0], files[0]});
  CHECK(dataset(rest, {.seq_len = 8}).max_documents() == 1);  // two more are behind its only sequence
}

TEST_CASE("pad gives each document a sequence, clipped or filled up, and padding is no target") {
  Folder folder;
  TokenSource source({folder.write("a.txt", "abcdef"), folder.write("b.txt", ""), folder.write("c.txt", "de")});
  Dataset d = dataset(source, {.mode = DataMode::pad, .seq_len = 4, .pad = 258});
  int64_t no = ignored_target;
  CHECK(d.samples() == 3);
  CHECK(row(d, 0) == Row{{256, 97, 98, 99}, {97, 98, 99, 100}, {0, 1, 2, 3}, {0, 0, 0, 0}});
  CHECK(row(d, 1) == Row{{256, 257, 258, 258}, {257, no, no, no}, {0, 1, 2, 3}, {0, 0, -1, -1}});
  CHECK(row(d, 2) == Row{{256, 100, 101, 257}, {100, 101, 257, no}, {0, 1, 2, 3}, {0, 0, 0, 0}});
}

TEST_CASE("a padding token that is the end of text does not silence the end of text") {
  Folder folder;
  TokenSource source({folder.write("a.txt", "ab")});
  Dataset d = dataset(source, {.mode = DataMode::pad, .seq_len = 6, .pad = 257});
  CHECK(row(d, 0).targets == std::vector<int64_t>{97, 98, 257, ignored_target, ignored_target, ignored_target});
}

TEST_CASE("every epoch has each sequence once, in an order of its own") {
  Folder folder;
  std::string text;
  for (int i = 0; i < 400; ++i) text += char('a' + i * i % 26);
  Dataset d = dataset(TokenSource({folder.write("a.txt", text)}), {.seq_len = 4, .shuffle = true});
  std::vector<std::vector<int64_t>> epochs[2], plain;
  for (int64_t n = 0; n < d.samples(); ++n) {
    for (int64_t e : {0, 1}) epochs[e].push_back(row(d, e * d.samples() + n).inputs);
    plain.push_back(row(dataset(TokenSource({folder.write("a.txt", text)}), {.seq_len = 4}), n).inputs);
  }
  CHECK(epochs[0] != epochs[1]);
  CHECK(epochs[0] != plain);
  for (auto* list : {&epochs[0], &epochs[1], &plain}) std::sort(list->begin(), list->end());
  CHECK(epochs[0] == plain);
  CHECK(epochs[1] == plain);
}

TEST_CASE("a mixture has each part's share of every 4096 samples") {
  Folder folder;
  TokenSource a({folder.write("a.txt", std::string(100, 'a'))}), b({folder.write("b.txt", std::string(5000, 'b'))});
  Dataset d({{a, 3}, {b, 1}}, {.seq_len = 10, .shuffle = true});
  int64_t from_b = 0;
  for (int64_t n = 0; n < 4096; ++n) {
    auto inputs = row(d, n).inputs;
    from_b += std::count(inputs.begin(), inputs.end(), 'b') > 0;
    if (n == 7) CHECK(from_b == 2);
  }
  CHECK(from_b == 1024);
}

TEST_CASE("a mixture keeps its shares all through an epoch, and begins a part again when it is used up") {
  Folder folder;
  auto part = [&](const std::string& name, char letter, size_t size) {
    return TokenSource({folder.write(name, std::string(size, letter))});
  };
  const std::vector<Dataset::Part> parts{
      {part("a", 'a', 3000), 5}, {part("b", 'b', 40000), 2}, {part("c", 'c', 9000), 1.3}};
  Dataset d(parts, {.seq_len = 8, .shuffle = true});
  std::vector<int64_t> sizes, counts(3);
  for (const auto& p : parts) sizes.push_back((p.source.tokens() - 1) / 8);
  CHECK(d.samples() == sizes[0] + sizes[1] + sizes[2]);
  std::vector<std::vector<Row>> rows(3);
  for (int64_t n = 0; n < d.samples(); ++n) {
    Row r = row(d, n);
    size_t from = std::count(r.inputs.begin(), r.inputs.end(), 'a') > 0   ? 0
                  : std::count(r.inputs.begin(), r.inputs.end(), 'b') > 0 ? 1
                                                                          : 2;
    rows[from].push_back(r);
    // Shares are whole numbers of 4096, so over each 4096 one more may be missing.
    for (size_t p = 0; p < 3; ++p)
      CHECK(std::abs(double(rows[p].size()) - parts[p].weight / 8.3 * double(n + 1)) < 1.5 + double(n) / 4096);
  }
  // The first is used up 10 times: each time, every one of its sequences is there. Each part is shuffled otherwise.
  REQUIRE(int64_t(rows[0].size()) > 9 * sizes[0]);
  for (size_t p = 0; p < 3; ++p) {
    Dataset alone({parts[p]}, {.seq_len = 8, .shuffle = true, .seed = 42 + p});
    for (size_t n = 0; n < rows[p].size(); ++n) CHECK(rows[p][n] == row(alone, int64_t(n)));
  }
}

TEST_CASE("errors of mixtures") {
  Folder folder;
  TokenSource a({folder.write("a.txt", std::string(100, 'a'))});
  auto error = [&](double weight) { return error_of([&] { Dataset({{a, 1}, {a, weight}}, {.seq_len = 10}); }); };
  CHECK(error(0.5) == "");
  for (double weight : {0.0, -1.0, double(INFINITY), double(NAN)})
    CHECK(error(weight) ==
          fmt::format("[data] weight {} of part 1 is no positive number: leave the part out, or give it one", weight));
  CHECK(error(1e-6) ==
        "[data] weight 1e-06 of part 1 is less than 1/4096 of the sum 1.000001: leave the part out, or give it more");
  TokenSource small({folder.write("b.txt", "ab")});
  CHECK(error_of([&] {
          Dataset({{a, 1}, {small, 1}}, {.seq_len = 10});
        }) ==
        "[data] 4 tokens of part 1 are less than one sequence of 10 and its target: give more text, or a smaller "
        "--seq-len");
}

TEST_CASE("the order of samples is one for every mesh, and a position goes on on another") {
  Folder folder;
  std::string text;
  for (int i = 0; i < 3000; ++i) text += char(i * 7 % 251);
  TokenSource whole({folder.write("a.txt", text)}), part({folder.write("b.txt", text.substr(0, 500))});
  Dataset plain = dataset(whole, {.seq_len = 12, .shuffle = true}),
          mixture({{whole, 0.3}, {part, 0.7}}, {.seq_len = 12, .shuffle = true});
  // Batches first .. first + count of 8 rows, as all ranks together have them.
  auto batches = [&](const Dataset& d, const std::string& mesh, const std::string& layout, int64_t samples, int count) {
    MeshShape shape = MeshShape::parse(mesh);
    std::vector<std::vector<double>> all(size_t(shape.world()));
    std::vector<int64_t> ends(size_t(shape.world()));
    launch(shape.world(), [&](Rank& rank) {
      DeviceMesh m(rank, shape);
      BatchLoader loader(d, m, parse_layout(layout, shape, 2), 8, samples);
      for (int i = 0; i < count; ++i) {
        TokenBatch b = loader.next();
        for (const auto& t : {b.inputs, b.targets, b.positions, b.documents}) {
          Tensor full = t.full_tensor();
          for (int64_t k = 0; k < full.numel(); ++k)
            all[size_t(rank.rank())].push_back(double(full.data<int64_t>()[k]));
        }
      }
      ends[size_t(rank.rank())] = loader.samples();
    });
    for (const auto& rank : all) CHECK(rank == all[0]);
    for (int64_t e : ends) CHECK(e == samples + 8 * count);
    return all[0];
  };
  struct Case {
    const char *mesh, *layout;
  };
  for (const Dataset* d : {&plain, &mixture}) {
    auto one = batches(*d, "dp=1", "", 0, 20);
    for (Case c : {Case{"dp=2", "dp=Shard(0)"},
                   {"dp=4", "dp=Shard(0)"},
                   {"dp=8", "dp=Shard(0)"},
                   {"dp=2,tp=2", "dp=Shard(0)"},
                   {"dp=2,cp=2", "dp=Shard(0) cp=Shard(1)"}}) {
      INFO(c.mesh << (d == &mixture ? ", mixture" : ""));
      CHECK(batches(*d, c.mesh, c.layout, 0, 20) == one);
      // Saved after two batches on one mesh, taken up on another: none repeated, none skipped.
      auto begin = batches(*d, "dp=1", "", 0, 2),
           rest = batches(*d, c.mesh, c.layout, d->resume(Json::parse(d->state(16).dump())), 18);
      begin.insert(begin.end(), rest.begin(), rest.end());
      CHECK(begin == one);
    }
  }
}

TEST_CASE("a position of other data is an error") {
  Folder folder;
  TokenSource source({folder.write("a.txt", std::string(100, 'a'))});
  Json state = dataset(source, {.seq_len = 5}).state(40);
  CHECK(dataset(source, {.seq_len = 5}).resume(state) == 40);
  CHECK(error_of([&] { dataset(source, {.seq_len = 6}).resume(state); }) ==
        "[data] the position is of other data: \"seq_len\" was 5, and is 6 here");
  TokenSource half({folder.write("h.txt", std::string(50, 'a'))});
  struct Other {
    const TokenSource& source;
    DatasetOptions options;
    const char* difference;
  };
  for (const Other& other :
       {Other{source, {.seq_len = 5, .seed = 7}, "\"seed\" was 42, and is 7 here"},
        {source, {.seq_len = 5, .shuffle = true}, "\"shuffle\" was false, and is true here"},
        {source, {.mode = DataMode::pad, .seq_len = 5}, "\"mode\" was \"pack\", and is \"pad\" here"},
        {half, {.seq_len = 5}, "\"sizes\" was [20], and is [10] here"}})
    CHECK(error_of([&] { dataset(other.source, other.options).resume(state); }) ==
          std::string("[data] the position is of other data: ") + other.difference);
  Json mixed = Dataset({{source, 0.7}, {source, 0.3}}, {.seq_len = 5}).state(40);
  CHECK(error_of([&] {
          Dataset({{source, 0.5}, {source, 0.5}}, {.seq_len = 5}).resume(mixed);
        }) == "[data] the position is of other data: \"weights\" was [0.7,0.3], and is [0.5,0.5] here");
  CHECK(error_of([&] {
          dataset(source, {.seq_len = 5}).resume({{"steps", 3}});
        }) == "[data] a position has no \"samples\"");
  state["samples"] = -8;
  CHECK(error_of([&] { dataset(source, {.seq_len = 5}).resume(state); }) == "[data] a position has no \"samples\"");
}

TEST_CASE("tokens that were prepared are those of the text") {
  Folder folder;
  Tokenizer t = Tokenizer::load(reference_file("gpt2.json"));
  std::string a = folder.write("a.txt", "Hello world"),
              b = folder.write("b.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"two\", \"x\": 1}\n");
  ShardWriter writer((folder.path / "s.bin").string(), t.vocab_size());
  tokenize_documents({a, b}, t, 2, [&](auto ids, bool last) { writer.add(ids, last); });
  writer.finish();
  std::vector<int64_t> expected;
  for (const char* text : {"Hello world", "one", "two"}) {  // GPT-2's end of text ends a document, nothing begins it
    for (int32_t id : t.ids(text)) expected.push_back(id);
    expected.push_back(*t.id_of("<|endoftext|>"));
  }
  for (const TokenSource& s : {TokenSource({folder.path.string()}), TokenSource({a, b}, t)}) {
    CHECK(all_tokens(s) == expected);
    CHECK(s.documents() == 3);
    CHECK(s.document_begin(3) == s.tokens());
  }
}

TEST_CASE("a shard has two bytes for each token where its vocabulary fits, else four") {
  Folder folder;
  struct Case {
    int64_t vocab_size, bytes;
  };
  for (Case c : {Case{65536, 2}, {65537, 4}}) {
    std::string file = folder / "s.bin";
    auto last = int32_t(c.vocab_size - 1);
    ShardWriter writer(file, c.vocab_size);
    writer.add(std::vector<int32_t>{last, 0, 1, 2});
    writer.finish();
    CHECK(all_tokens(TokenSource({file})) == std::vector<int64_t>{last, 0, 1, 2});
    CHECK(int64_t(std::filesystem::file_size(file)) == 40 + 4 * c.bytes + 8);
  }
}

TEST_CASE("a document begins and ends once, also where the tokenizer itself adds a token") {
  Folder folder;
  Tokenizer t = Tokenizer::load(reference_file("llama3.json"));
  TokenSource s({folder.write("a.txt", "some text")}, t);
  std::vector<int64_t> expected{*t.id_of("<|begin_of_text|>")};
  for (int32_t id : t.ids("some text")) expected.push_back(id);
  expected.push_back(*t.id_of("<|end_of_text|>"));
  CHECK(all_tokens(s) == expected);
}

TEST_CASE("a long document is tokenized in parts, as one") {
  Folder folder;
  Tokenizer t = Tokenizer::load(reference_file("llama3.json"));
  std::string text;
  for (uint32_t i = 1; text.size() < 3'000'000; i = i * 1664525u + 1013904223u)
    text += std::to_string(i) + (i >> 31 ? " the  sum " : ", it's\n\n");
  std::string file = folder.write("a.txt", text);
  std::vector<int32_t> ids;
  int parts = 0, documents = 0;
  tokenize_documents({file, folder.write("b.txt", "")}, t, 2, [&](auto part, bool last) {
    ids.insert(ids.end(), part.begin(), part.end());
    ++parts, documents += last;
  });
  CHECK(parts == 4);
  CHECK(documents == 2);
  std::vector<int32_t> expected = t.ids(text);
  auto begin = *t.id_of("<|begin_of_text|>"), end = *t.id_of("<|end_of_text|>");
  expected.insert(expected.begin(), begin);
  expected.insert(expected.end(), {end, begin, end});
  CHECK((ids == expected));  // not to be printed
  CHECK(TokenSource({file}, t).documents() == 1);
}

TEST_CASE("text is tokenized into a file without a name: a run that is killed leaves none") {
  Folder folder, temporary;
  std::string pipe = folder / "a.jsonl";
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
  setenv("TMPDIR", temporary.path.c_str(), 1);
  bool no_name = false;
  std::jthread writer([&] {
    std::ofstream out(pipe);  // waits for the reader, who has made the file of tokens before
    no_name = std::filesystem::is_empty(temporary.path);
    out << "{\"text\": \"ab\"}\n";
  });
  TokenSource source({pipe});
  unsetenv("TMPDIR");
  writer.join();
  CHECK(no_name);
  CHECK(all_tokens(source) == std::vector<int64_t>{256, 97, 98, 257});
}

TEST_CASE("plain text is mapped: it takes no memory of its own") {
  Folder folder;
  std::string file = folder.write("a.txt", "");
  std::filesystem::resize_file(file, 64 << 20);
  auto anonymous = [] {  // kB
    std::string status = read_file("/proc/self/status");
    return std::stoll(status.substr(status.find("RssAnon:") + 8));
  };
  int64_t before = anonymous();
  for_documents(file, [&](std::string_view text) {
    CHECK(std::count(text.begin(), text.end(), '\0') == 64 << 20);
    CHECK(anonymous() - before < 16 << 10);
  });
}

TEST_CASE("shards of llm.c, Megatron and nanotron") {
  Folder folder;
  auto u16 = [](uint16_t v) { return v; };
  std::string tokens = raw(u16(50256), u16(1), u16(2), u16(50256), u16(3));
  std::string header(1024, '\0');
  header.replace(0, 12, raw(int32_t(20240520), int32_t(1), int32_t(5)));
  TokenSource llm({folder.write("llm.bin", header + tokens)});
  CHECK(all_tokens(llm) == std::vector<int64_t>{50256, 1, 2, 50256, 3});
  CHECK(llm.documents() == 2);
  CHECK(llm.document_begin(1) == 3);
  auto u32 = [](uint32_t v) { return v; };
  std::string wide = raw(u32(128000), u32(1), u32(2), u32(128000), u32(70000));
  header.replace(0, 8, raw(int32_t(20240801), int32_t(7)));
  TokenSource llama({folder.write("llama.bin", header + wide)});
  CHECK(all_tokens(llama) == std::vector<int64_t>{128000, 1, 2, 128000, 70000});
  CHECK(llama.document_begin(1) == 3);

  std::string idx =
      std::string("MMIDIDX\0\0", 9) + raw(uint64_t(1), uint8_t(8), uint64_t(2), uint64_t(3), int32_t(3), int32_t(2),
                                          int64_t(0), int64_t(6), int64_t(0), int64_t(1), int64_t(2));
  folder.write("meg.idx", idx);
  TokenSource megatron({folder.write("meg.bin", tokens)});
  CHECK(all_tokens(megatron) == all_tokens(llm));
  CHECK(megatron.document_of(2) == 0);
  CHECK(megatron.document_of(3) == 1);
  idx.replace(17, 1, raw(uint8_t(4)));
  idx.replace(17 + 17 + 8 + 8, 8, raw(int64_t(12)));  // where the second sequence begins
  folder.write("wide.idx", idx);
  CHECK(all_tokens(TokenSource({folder.write("wide.bin", wide)})) == all_tokens(llama));

  folder.write("n.ds.index", raw(uint64_t(2), uint64_t(5)));
  TokenSource nanotron({folder.write("n.ds", tokens)});
  CHECK(all_tokens(nanotron) == all_tokens(llm));
  CHECK(nanotron.document_begin(1) == 2);
  folder.write("wide.ds.index", raw(uint64_t(2), uint64_t(5)));
  CHECK(all_tokens(TokenSource({folder.write("wide.ds", wide)})) == all_tokens(llama));
}

TEST_CASE("compressed text is text") {
  Folder folder;
  std::string lines = "{\"text\": \"one\"}\n{\"text\": \"two\"}", text;
  for (uint32_t i = 1; text.size() < 3'000'000; i = i * 1664525u + 1013904223u) text += std::to_string(i) + "\n";
  auto documents = [&](const std::string& name, const std::string& bytes) {
    std::vector<std::string> found;
    for_documents(folder.write(name, bytes), [&](std::string_view t) { found.emplace_back(t); });
    return found;
  };
  const std::vector<std::string> two{"one", "two"};
  CHECK(documents("a.jsonl.gz", gzip(lines)) == two);
  CHECK(documents("a.jsonl.zst", zstd(lines)) == two);
  CHECK(documents("a.jsonl.zst", zstd(lines.substr(0, 9)) + zstd(lines.substr(9))) == two);  // frames are joined
  CHECK((documents("a.txt.gz", gzip(text)) == std::vector{text}));
  CHECK((documents("a.txt.zst", zstd(text)) == std::vector{text}));
  CHECK(documents("empty.txt.zst", "") == std::vector<std::string>{""});
  std::string block(1 << 20, 'a');  // a line ends where a block of reading does
  block.replace(0, 10, "{\"text\": \""), block.replace(block.size() - 2, 2, "\"}");
  CHECK(documents("b.jsonl", block + "\n\r\n" + lines).size() == 3);
}

TEST_CASE("errors of datasets and loaders") {
  Folder folder;
  TokenSource source({folder.write("a.txt", "abc")});
  CHECK(error_of([&] { Dataset({}, {.seq_len = 2}); }) == "[data] there is no data: give files");
  Dataset small({{source}}, {.seq_len = 3, .vocab_size = 258}), narrow({{source}}, {.seq_len = 3, .vocab_size = 256});
  CHECK(row(small, 0).inputs.size() == 3);
  CHECK(error_of([&] { row(narrow, 0); }) ==
        "[data] token 256 in sample 0 is outside of the vocabulary of 256: another tokenizer made the data");
  auto rank = Rank::single();
  DeviceMesh m(*rank, "dp=1");
  CHECK(error_of([&] { BatchLoader(small, m, Layout(), 2); }) ==
        "[data] 1 sequences of 3 tokens are fewer than the 2 rows of a batch, which would have some twice: give more "
        "text, a "
        "smaller --batch-size or a smaller --seq-len");
  BatchLoader loader(narrow, m, Layout(), 1);
  for (int again = 0; again < 2; ++again)
    CHECK_THAT(error_of([&] { loader.next(); }), StartsWith("[data] token 256 in sample 0"));
}
