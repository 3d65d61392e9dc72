// What is wrong in a file is said, with its place.
#include "nn/data/documents.h"
#include "nn/data/token_source.h"
#include "nn/tokenizer/bpe.h"
#include "nn/tokenizer/tokenizer.h"
#include "nn/tokenizer/train.h"
#include "tests/data/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// A small file, with one place changed by a JSON pointer.
Json small_file() {
  return Json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
    "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

struct Case {
  const char *place, *value, *error;
};

}  // namespace

TEST_CASE("a tokenizer file that is not supported is an error with its place") {
  CHECK(Tokenizer::parse(small_file()).ids("ab<s>") == std::vector<int32_t>{2, 3});
  const Case cases[] = {
      {"/version", R"("2.0")", "[tokenizer] the file's version is 2.0: 1.0 is supported"},
      {"/version", "1", "[tokenizer] tokenizer.json.version is 1, not a text"},
      {"/more", "1", "[tokenizer] tokenizer.json.more is not supported (it is 1)"},
      {"/model", "null", "[tokenizer] tokenizer.json has no \"model\""},
      {"/model", "[]", "[tokenizer] model is not an object"},
      {"/model/type", R"("Unigram")", "[tokenizer] model.type is Unigram: only BPE is supported"},
      {"/model/dropout", "0.5", "[tokenizer] model.dropout is 0.5: only 0 is supported"},
      {"/model/end_of_word_suffix", R"("</w>")",
       "[tokenizer] model.end_of_word_suffix is \"</w>\": only an empty one is supported"},
      {"/model/byte_fallback", "true",
       "[tokenizer] model.byte_fallback is of characters, but pre_tokenizer is ByteLevel: only one of them is "
       "supported"},
      {"/model/unk_token", R"("<unk>")", "[tokenizer] model.unk_token names \"<unk>\", which is no token"},
      {"/model/unk_token", R"("")", ""},  // some files of GPT-2 have it
      {"/model/vocab", "{}", "[tokenizer] model.vocab is not an object of tokens and their ids"},
      {"/model/vocab/b", "-1", "[tokenizer] model.vocab has the id -1 of \"b\": ids are integers from 0 to 16777215"},
      {"/model/vocab/b", "0", "[tokenizer] model.vocab \"b\" has the id 0, which is that of \"a\""},
      {"/model/merges", "1", "[tokenizer] model.merges is not a list"},
      {"/model/merges/0", R"("a")", "[tokenizer] model.merges[0] is \"a\", not two tokens"},
      {"/model/merges/0", R"("a b b")", "[tokenizer] model.merges[0] is \"a b b\", not two tokens"},
      {"/model/merges/0", R"(["a", "b", "b"])", "[tokenizer] model.merges[0] is [\"a\",\"b\",\"b\"], not two tokens"},
      {"/model/merges/0", R"("a c")", "[tokenizer] model.merges[0] names \"c\", which is no token"},
      {"/model/merges/0", R"("b a")", "[tokenizer] merge 0 makes \"ba\", which is not in the vocabulary"},
      {"/added_tokens", "{}", "[tokenizer] added_tokens is not a list"},
      {"/added_tokens/0/content", R"("")", "[tokenizer] added_tokens[0] is empty"},
      {"/added_tokens/0/content", R"("a")", "[tokenizer] added_tokens[0] has two ids, 0 and 3"},
      {"/added_tokens/0/id", "99999999",
       "[tokenizer] added_tokens[0] has the id 99999999: more than 16777216 ids are not supported"},
      {"/added_tokens/0/id", "-3", "[tokenizer] added_tokens[0].id is -3, not from 0 to 2^31 - 1"},
      {"/added_tokens/0/id", "18446744073709551615",
       "[tokenizer] added_tokens[0].id is too large: 1.8446744073709552e+19"},
      {"/normalizer/type", R"("Nmt")",
       "[tokenizer] normalizer has the type Nmt: supported are Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace, "
       "Lowercase and Strip"},
      {"/normalizer", R"({"type": "Replace", "pattern": {"String": ""}, "content": ""})",
       "[tokenizer] normalizer replaces nothing: its pattern is empty"},
      {"/pre_tokenizer/type", R"("Bert")",
       "[tokenizer] pre_tokenizer has the type Bert: supported are Sequence, Split, ByteLevel, Metaspace and Digits"},
      {"/pre_tokenizer", R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]})",
       "[tokenizer] pre_tokenizer.pretokenizers[1] is behind ByteLevel, which must be the last step"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"})",
       "[tokenizer] pre_tokenizer cuts at nothing: its pattern is empty"},
      {"/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Cut"})",
       "[tokenizer] pre_tokenizer.behavior is Cut: Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous "
       "are supported"},
      {"/pre_tokenizer", R"({"type": "Metaspace", "prepend_scheme": "last"})",
       "[tokenizer] pre_tokenizer.prepend_scheme is last, not always, first or never"},
      {"/decoder/type", R"("WordPiece")",
       "[tokenizer] decoder has the type WordPiece: supported are Sequence, ByteLevel, Replace, ByteFallback, Fuse, "
       "Strip and Metaspace"},
      {"/decoder", R"({"type": "Replace", "pattern": {"String": ""}, "content": ""})",
       "[tokenizer] decoder replaces nothing: its pattern is empty"},
      {"/decoder", R"({"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 0, "stop": 1}]})",
       "[tokenizer] decoder.decoders[0] takes 1 times \" \" off the end: only a text off the start is supported"},
      {"/decoder", R"({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteLevel"}]})",
       "[tokenizer] decoder.decoders[1] is a ByteLevel behind Fuse: only Strip is supported there"},
      {"/post_processor", R"({"type": "Other"})",
       "[tokenizer] post_processor has the type Other: supported are Sequence, ByteLevel, TemplateProcessing, "
       "RobertaProcessing and BertProcessing"},
      {"/post_processor", R"({"type": "BertProcessing", "sep": 3, "cls": ["<s>", 3]})",
       "[tokenizer] post_processor.sep is 3, not a token and its id"},
      {"/post_processor", R"({"type": "TemplateProcessing", "single": [], "special_tokens": {}})",
       "[tokenizer] post_processor.single leaves out the text"},
      {"/post_processor",
       R"({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}], "special_tokens": {}})",
       "[tokenizer] post_processor has the text twice: that is not supported"},
      {"/post_processor",
       R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}})",
       "[tokenizer] post_processor.single[0].SpecialToken names \"<s>\", which special_tokens has not"},
      {"/post_processor",
       R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": [9]}}})",
       "[tokenizer] post_processor.special_tokens.<s>.ids has 9, which is no id of a token"},
      {"", R"({"model": {"vocab": {"a": 0, "c": 2}, "merges": []},
               "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}],
                                  "special_tokens": {"a": {"ids": [1]}}}})",
       "[tokenizer] post_processor.special_tokens.a.ids has 1, which is no id of a token"},
      {"/truncation", R"({"max_length": 3, "direction": "Up"})",
       "[tokenizer] truncation.direction is Up, not Right or Left"},
      {"/padding", R"({"strategy": "Shortest"})",
       "[tokenizer] padding.strategy is \"Shortest\", not BatchLongest or Fixed"},
      {"/padding", R"({"strategy": {"Fixed": 16777217}})",
       "[tokenizer] padding.strategy.Fixed is 16777217: more than 16777216 is not supported"},
  };
  for (const Case& c : cases) {
    Json file = small_file();
    file[Json::json_pointer(c.place)] = Json::parse(c.value);
    INFO(c.place << ": " << c.value);
    CHECK(error_of([&] { Tokenizer::parse(file); }) == c.error);
  }
  CHECK(
      error_of([] {
        Tokenizer::parse(Json::parse(
            R"({"model": {"vocab": {"a": 0}, "merges": []}, "normalizer": {"type": "Sequence", "normalizers": "x"}})"));
      }).starts_with("[tokenizer] this is no tokenizer.json: "));
  CHECK(error_of([] {
          Bpe({{"a", 0}}, {{0, 1}}, {});
        }) == "[tokenizer] merge 0 joins ids 0 and 1, which are not both tokens");
}

TEST_CASE("an id that is no token is an error") {
  Tokenizer t = Tokenizer::parse(small_file());
  for (int32_t id : {-1, 4, 1000000})
    CHECK(error_of([&] { t.decode(std::vector<int32_t>{id}); }) ==
          fmt::format("[tokenizer] {} is no id of a token: ids are from 0 to 3", id));
}

TEST_CASE("errors of training a tokenizer") {
  CHECK(error_of([] {
          TokenizerTrainer({.vocab_size = 258, .special = {"a", "b", "c"}});
        }) == "[tokenizer_train] a vocabulary of 258 tokens is less than the 259 of bytes and special tokens");
  CHECK(error_of([] {
          TokenizerTrainer({.vocab_size = 300, .special = {"a", "a"}});
        }) == "[tokenizer_train] special token \"a\" is empty, stands twice or is no UTF-8");
  for (const char* special : {"", "\xFF"})
    CHECK_THAT(error_of([&] { TokenizerTrainer({.vocab_size = 300, .special = {special}}); }),
               Contains("is empty, stands twice or is no UTF-8"));
}

TEST_CASE("errors of documents") {
  Folder folder;
  auto error = [&](const std::string& name, const std::string& bytes) {
    std::string file = folder.write(name, bytes);
    std::string text = error_of([&] { for_documents(file, [](std::string_view) {}); });
    size_t at = text.find(file);
    return at == std::string::npos ? text : text.replace(at, file.size(), "F");
  };
  CHECK(error("a.jsonl", "{\"text\": \"x\"}\n[1]\n") == "[data] line 2 of F is no JSON object");
  CHECK(error("a.jsonl", "\n{\"content\": \"x\"}") == "[data] line 2 of F has no \"text\"");
  CHECK(error("a.jsonl", "{\"text\": 3}") == "[data] line 1 of F has no \"text\"");
  CHECK(error("a.txt.gz", "plain") == "[data] F is no gzip file, whatever its name says");
  CHECK_THAT(error("a.txt.gz", "\x1f\x8b\x08\x01 cut"), StartsWith("[data] F is no whole gzip file: "));
  CHECK_THAT(error("a.txt.gz", gzip("plain text").substr(0, 20)), StartsWith("[data] F is no whole gzip file: "));
  CHECK_THAT(error("a.txt.zst", "plain text"), StartsWith("[data] F is no zstd file: "));
  CHECK(error("a.txt.zst", raw(uint32_t(0xFD2FB528))) == "[data] F is cut short: its last zstd frame has no end");
  std::filesystem::create_directory(folder.path / "folder.gz");
  for (const char* name : {"none.gz", "none.zst"})
    CHECK_THAT(error_of([&] { for_documents(folder / name, [](std::string_view) {}); }),
               EndsWith(std::string(name) + ": no such file, or no permission"));
  CHECK_THAT(error_of([&] { for_documents(folder / "folder.gz", [](std::string_view) {}); }),
             EndsWith("folder.gz: it is a folder"));
}

TEST_CASE("a shard that is not what it says is an error") {
  Folder folder;
  auto error = [&](const std::string& name, const std::string& bytes) {
    std::string file = folder.write(name, bytes);
    std::string text = error_of([&] { TokenSource({file}); });
    for (size_t at; (at = text.find(folder.path.string() + "/")) != std::string::npos;)
      text.erase(at, folder.path.string().size() + 1);
    return text;
  };
  auto own = [](uint32_t version, uint32_t width, uint64_t tokens, uint64_t documents, const std::string& rest) {
    return "DTTOKENS" + raw(version, width, tokens, documents, uint64_t(300)) + rest;
  };
  std::string four = raw(uint16_t(1), uint16_t(2), uint16_t(3), uint16_t(4));
  CHECK(error("a.bin", own(1, 2, 4, 1, four + raw(uint64_t(4)))) == "");
  CHECK(error("a.bin", "DTTOKENS") == "[data] a.bin is cut short: 8 bytes are no header");
  CHECK(error("a.bin", own(2, 2, 0, 0, "")) == "[data] a.bin is a shard of version 2: 1 is supported");
  CHECK(error("a.bin", own(1, 3, 0, 0, "")) == "[data] a.bin has 3 bytes per token, not 2 or 4");
  CHECK(error("a.bin", own(1, 2, 5, 1, four + raw(uint64_t(4)))) ==
        "[data] a.bin is cut short, or not what its header says: 56 bytes for 5 tokens and 1 documents");
  CHECK(error("a.bin", own(1, 2, ~uint64_t(0) / 2, 1, four)) ==
        "[data] a.bin is cut short, or not what its header says: 48 bytes for 9223372036854775807 tokens and 1 "
        "documents");
  CHECK(error("a.bin", own(1, 2, 4, 1, four + raw(uint64_t(5)))) ==
        "[data] a.bin: document 0 ends at token 5, outside of 0 to 4");
  CHECK(error("a.bin", own(1, 2, 4, 1, four + raw(uint64_t(3)))) ==
        "[data] a.bin: its documents have 3 tokens, the file 4");
  CHECK(error("b.bin", "text") ==
        "[data] b.bin is no shard of data_prepare or llm.c, and has no .idx of Megatron beside it");
  std::string llm = raw(int32_t(20240520), int32_t(1), int32_t(9)) + std::string(1012, '\0');
  CHECK(error("b.bin", llm) == "[data] b.bin is cut short, or not what its header says: 1024 bytes for 9 tokens");
  CHECK(error("b.bin", llm.substr(0, 100)) == "[data] b.bin is cut short: 100 bytes are no header");

  auto megatron = [&](uint64_t version, uint8_t type, uint64_t sequences, const std::string& rest) {
    folder.write("m.idx", std::string("MMIDIDX\0\0", 9) + raw(version, type, sequences, uint64_t(1)) + rest);
    return error("m.bin", four);
  };
  std::string one = raw(int32_t(4), int64_t(0), int64_t(0));
  CHECK(megatron(1, 8, 1, one) == "");
  CHECK(megatron(2, 8, 1, one) == "[data] m.idx has version 2: 1 is supported");
  CHECK(megatron(1, 5, 1, one) == "[data] m.idx has tokens of type 5: 4 (int32) and 8 (uint16) are supported");
  CHECK(megatron(1, 8, 9, one) == "[data] m.idx is cut short: 54 bytes for 9 sequences");
  CHECK(megatron(1, 8, 1, raw(int32_t(4), int64_t(2), int64_t(0))) ==
        "[data] m.idx: sequence 0 of 4 tokens is at byte 2, not 0: only sequences one after the other are supported");
  CHECK(megatron(1, 8, 1, raw(int32_t(3), int64_t(0), int64_t(0))) == "[data] m.bin has 8 bytes, its index 3 tokens");
  folder.write("m.idx", "no index");
  CHECK(error("m.bin", four) == "[data] m.idx is no index of Megatron");

  folder.write("n.ds.index", "abc");
  CHECK(error("n.ds", four) == "[data] n.ds.index has 3 bytes: it should have 8 for each document");
  folder.write("n.ds.index", raw(uint64_t(3)));
  CHECK(error("n.ds", four) == "[data] n.ds has 8 bytes, its index 3 tokens: 2 or 4 bytes each are supported");
  folder.write("n.ds.index", raw((uint64_t(1) << 62) + 2));  // four times that is 8 in 64 bits
  CHECK(error("n.ds", four) ==
        "[data] n.ds has 8 bytes, its index 4611686018427387906 tokens: 2 or 4 bytes each are supported");

  ShardWriter writer((folder.path / "w.bin").string(), 300);
  CHECK(error_of([&] { writer.add(std::vector<int32_t>{300}); }) ==
        "[data] token 300 is outside of the vocabulary of 300");
  setenv("TMPDIR", "/no/folder", 1);
  CHECK_THAT(error("a.jsonl", "{\"text\": \"x\"}"), Contains(": set TMPDIR to a folder with room for the tokens"));
  unsetenv("TMPDIR");
}

namespace {

// Whether reading a changed file went well or was refused with a message; anything else would end the program.
void mutate(int rounds, uint32_t seed) {
  Folder folder;
  std::mt19937 random(seed);
  std::string json = small_file().dump(), gpt2 = read_file(reference_file("gpt2.json"));
  ShardWriter writer((folder.path / "s.bin").string(), 300);
  writer.add(std::vector<int32_t>{1, 2, 3}), writer.add(std::vector<int32_t>{4});
  writer.finish();
  // One of each kind; of some a second file beside it, which may be the one that is changed.
  struct Kind {
    std::string name, bytes, index_name = {}, index = {};
  };
  std::string tokens = raw(uint16_t(1), uint16_t(2), uint16_t(3), uint16_t(4));
  std::string llm = raw(int32_t(20240520), int32_t(1), int32_t(4)) + std::string(1012, '\0') + tokens;
  std::string megatron =
      std::string("MMIDIDX\0\0", 9) + raw(uint64_t(1), uint8_t(8), uint64_t(2), uint64_t(3), int32_t(3), int32_t(1),
                                          int64_t(0), int64_t(6), int64_t(0), int64_t(1), int64_t(2));
  std::string lines = "{\"text\": \"one\"}\n\n{\"text\": \"tö\", \"x\": [1]}\n";
  const Kind kinds[] = {{"own.bin", read_file(folder.path / "s.bin")},
                        {"llm.bin", llm},
                        {"meg.bin", tokens, "meg.idx", megatron},
                        {"n.ds", tokens, "n.ds.index", raw(uint64_t(2), uint64_t(4))},
                        {"l.jsonl", lines},
                        {"l.jsonl.gz", gzip(lines)},
                        {"l.jsonl.zst", zstd(lines)}};
  auto changed = [&](std::string bytes) {
    for (int n = 1 + int(random() % 3); n > 0 && !bytes.empty(); --n) {
      size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = char(random());
          break;
        case 1:
          bytes.erase(at, 1 + random() % 8);
          break;
        case 2:
          bytes.insert(at, 1, "0129{}[]\",:"[random() % 11]);
          break;
        default:
          bytes.resize(at + 1);
      }
    }
    return bytes;
  };
  int refused = 0;
  for (int i = 0; i < rounds; ++i) {
    INFO("seed " << seed << ", round " << i);
    std::string file = folder.write("t.json", changed(i % 50 == 0 ? gpt2 : json));
    std::string error = error_of([&] { Tokenizer::load(file).encode("ab <s> \xFF é"); });
    CHECK((error == "" || error.starts_with("[tokenizer] ")));
    refused += error != "";
    const Kind& kind = kinds[size_t(i) % std::size(kinds)];
    INFO(kind.name);
    bool index = kind.index_name != "" && random() % 2 == 0;
    file = folder.write(kind.name, index ? kind.bytes : changed(kind.bytes));
    if (kind.index_name != "") folder.write(kind.index_name, index ? changed(kind.index) : kind.index);
    error = error_of([&] {
      TokenSource s({file});
      std::vector<int64_t> all(size_t(s.tokens()));
      if (!all.empty()) s.read(0, all), s.document_of(s.tokens() - 1);
      for (int64_t d = 0; d <= s.documents(); ++d) s.document_begin(d);
    });
    CHECK((error == "" || error.starts_with("[data] ")));
  }
  CHECK(refused > rounds / 2);
}

}  // namespace

TEST_CASE("a changed tokenizer or shard is read or refused with a message") { mutate(300, 1); }

TEST_CASE("10,000 changed tokenizers and shards are read or refused with a message", "[nightly]") { mutate(10'000, 2); }
