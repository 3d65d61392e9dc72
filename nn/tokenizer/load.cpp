// Reading a tokenizer.json.
#include "nn/json.h"
#include "nn/tokenizer/parts.h"
#include "nn/tokenizer/section.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

const Json& section_or_null(const Json& json, const char* key) {
  static const Json null;
  auto found = json.find(key);
  return found == json.end() ? null : *found;
}

// Ids are indices: a gap costs memory, so a stray one is an error.
constexpr int32_t most_ids = 1 << 24;

// The id that a number of a JSON is; -1 where it is none. A JSON made by a program has signed integers.
int64_t id_in(const Json& number) {
  if (number.is_number_unsigned()) return int64_t(std::min<uint64_t>(number.get<uint64_t>(), most_ids));
  return number.is_number_integer() ? std::max<int64_t>(number.get<int64_t>(), -1) : -1;
}

class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  std::shared_ptr<const TokenizerParts> read();

 private:
  void add_token(const std::string& text, int32_t id, const std::string& path);
  void read_model(const Json& model);
  std::vector<Bpe::Merge> read_merges(const Json& merges) const;
  Vocabulary model_vocabulary(const Json& vocabulary) const;
  void read_added(const Json& list);
  void read_post_processor(const Json& json, const std::string& path);
  void read_template(Section& s);
  void read_lengths();
  void find_document_tokens();
  int32_t id_of(const std::string& token, const std::string& path) const;

  const Json& json_;
  std::shared_ptr<TokenizerParts> t_;
};

int32_t Reader::id_of(const std::string& token, const std::string& path) const {
  auto found = t_->ids.find(token);
  check(found != t_->ids.end(), "[tokenizer] {} names \"{}\", which is no token", path, token);
  return found->second;
}

void Reader::add_token(const std::string& text, int32_t id, const std::string& path) {
  check(id < most_ids, "[tokenizer] {} has the id {}: more than {} ids are not supported", path, id, most_ids);
  auto [known, fresh] = t_->ids.emplace(text, id);
  check(known->second == id, "[tokenizer] {} has two ids, {} and {}", path, known->second, id);
  if (size_t(id) >= t_->tokens.size()) t_->tokens.resize(size_t(id) + 1);
  auto& token = t_->tokens[size_t(id)];
  if (token && *token != text) fail("[tokenizer] {} has the id {}, which is that of \"{}\"", path, id, *token);
  token = text;
}

void Reader::read_model(const Json& json) {
  Section s(json, "model");
  auto type = s.get<std::string>("type", "BPE");
  check(type == "BPE", "[tokenizer] model.type is {}: only BPE is supported", type);
  check(s.get<double>("dropout", 0.0) == 0.0, "[tokenizer] model.dropout is {}: only 0 is supported",
        s.get<double>("dropout", 0.0));
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    check(s.get<std::string>(key, "").empty(), "[tokenizer] model.{} is \"{}\": only an empty one is supported", key,
          s.get<std::string>(key, ""));
  const Json& vocabulary = s.required("vocab");
  check(vocabulary.is_object() && !vocabulary.empty(),
        "[tokenizer] model.vocab is not an object of tokens and their ids");
  for (const auto& [text, id] : vocabulary.items()) {
    if (int64_t n = id_in(id); n < 0 || n >= most_ids)
      fail("[tokenizer] model.vocab has the id {} of \"{}\": ids are integers from 0 to {}", id.dump(), text,
           most_ids - 1);
    add_token(text, id.get<int32_t>(), "model.vocab \"" + text + "\"");
  }
  BpeOptions options{.bytes = t_->pre_tokenizer.byte_level(),
                     .ignore_merges = s.get<bool>("ignore_merges", false),
                     .byte_fallback = s.get<bool>("byte_fallback", false),
                     .fuse_unknown = s.get<bool>("fuse_unk", false)};
  if (s.find("unk_token")) {
    auto unknown = s.get<std::string>("unk_token");
    // An empty one, as of some GPT-2 files, stands for none.
    if (!unknown.empty()) options.unknown = id_of(unknown, "model.unk_token");
  }
  if (options.bytes && options.byte_fallback)
    fail(
        "[tokenizer] model.byte_fallback is of characters, but pre_tokenizer is ByteLevel: only one of them is "
        "supported");
  t_->bpe.emplace(model_vocabulary(vocabulary), read_merges(s.required("merges")), options);
  s.end();
}

// With byte-level symbols, raw bytes. Tokens of other characters than the byte alphabet's cannot come from text.
Vocabulary Reader::model_vocabulary(const Json& vocabulary) const {
  Vocabulary raw;
  for (const auto& [text, id] : vocabulary.items()) {
    if (!t_->pre_tokenizer.byte_level())
      raw.emplace(text, id.get<int32_t>());
    else if (auto bytes = of_byte_alphabet(text))
      raw.emplace(*bytes, id.get<int32_t>());
  }
  return raw;
}

std::vector<Bpe::Merge> Reader::read_merges(const Json& merges) const {
  check(merges.is_array(), "[tokenizer] model.merges is not a list");
  std::vector<Bpe::Merge> list;
  for (size_t i = 0; i < merges.size(); ++i) {
    const Json& m = merges[i];
    std::string left, right;
    bool ok = false;
    if (m.is_string()) {  // "left right"
      const auto& text = m.get_ref<const std::string&>();
      size_t space = text.find(' ');
      ok = space != std::string::npos && text.find(' ', space + 1) == std::string::npos;
      if (ok) left = text.substr(0, space), right = text.substr(space + 1);
    } else if (m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string()) {
      ok = true, left = m[0], right = m[1];
    }
    if (!ok) fail("[tokenizer] model.merges[{}] is {}, not two tokens", i, m.dump());
    std::string path = fmt::format("model.merges[{}]", i);
    list.emplace_back(id_of(left, path), id_of(right, path));
  }
  return list;
}

void Reader::read_added(const Json& list) {
  if (list.is_null()) return;
  check(list.is_array(), "[tokenizer] added_tokens is not a list");
  for (size_t i = 0; i < list.size(); ++i) {
    Section s(list[i], fmt::format("added_tokens[{}]", i));
    AddedToken a{s.get<int32_t>("id"), s.get<std::string>("content")};
    a.single_word = s.get<bool>("single_word", false);
    a.lstrip = s.get<bool>("lstrip", false), a.rstrip = s.get<bool>("rstrip", false);
    a.special = s.get<bool>("special", false);
    a.normalized = s.get<bool>("normalized", !a.special);
    s.end();
    check(!a.content.empty(), "[tokenizer] {} is empty", s.path());
    add_token(a.content, a.id, s.path());
    t_->added.push_back(a);
  }
  t_->cuts_before_spaces = t_->pre_tokenizer.known() && t_->normalizer.is_local();
  for (const AddedToken& a : t_->added) {
    // What no normalizer changes is found without normalizing first.
    bool normalized = a.normalized && !t_->normalizer.empty();
    std::string text = normalized ? t_->normalizer({a.content}).text : a.content;
    (normalized ? t_->in_normalized : t_->in_text).add(a, text);
    if (a.rstrip || text.find(' ') != std::string::npos) t_->cuts_before_spaces = false;
  }
  t_->special.resize(t_->tokens.size());
  for (const AddedToken& a : t_->added) t_->special[size_t(a.id)] = a.special;
}

void Reader::read_post_processor(const Json& json, const std::string& path) {
  if (json.is_null()) return;
  Section s(json, path);
  auto type = s.get<std::string>("type");
  auto pair = [&](const char* key) {  // ["</s>", 2]
    const Json& p = s.required(key);
    if (!p.is_array() || p.size() != 2 || !p[0].is_string())
      fail("[tokenizer] {} is {}, not a token and its id", s.at(key), p.dump());
    return id_of(p[0], s.at(key));
  };
  auto trim = [&] {
    bool prefix_space = s.get<bool>("add_prefix_space", true);
    if (s.get<bool>("trim_offsets", true)) t_->post.trims.push_back(prefix_space);
  };
  if (type == "Sequence") {
    const Json& list = s.required("processors");
    for (size_t i = 0; i < list.size(); ++i) read_post_processor(list[i], fmt::format("{}.processors[{}]", path, i));
  } else if (type == "ByteLevel") {
    trim();
    s.find("use_regex");
  } else if (type == "TemplateProcessing") {
    read_template(s);
  } else if (type == "RobertaProcessing") {
    t_->post.before.push_back(pair("cls")), t_->post.behind.push_back(pair("sep"));
    trim();
  } else if (type == "BertProcessing") {
    t_->post.before.push_back(pair("cls")), t_->post.behind.push_back(pair("sep"));
  } else {
    fail(
        "[tokenizer] {} has the type {}: supported are Sequence, ByteLevel, TemplateProcessing, RobertaProcessing and "
        "BertProcessing",
        path, type);
  }
  s.end();
}

// "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]; the template of pairs is not used.
void Reader::read_template(Section& s) {
  s.find("pair");
  const Json& tokens = s.required("special_tokens");
  bool behind = false;
  const Json& single = s.required("single");
  for (size_t i = 0; i < single.size(); ++i) {
    Section item(single[i], fmt::format("{}.single[{}]", s.path(), i));
    if (item.find("Sequence")) {
      check(!behind, "[tokenizer] {} has the text twice: that is not supported", s.path());
      behind = true;
      item.end();
      continue;
    }
    Section special(item.required("SpecialToken"), item.at("SpecialToken"));
    auto name = special.get<std::string>("id");
    auto named = tokens.find(name);
    check(named != tokens.end(), "[tokenizer] {} names \"{}\", which special_tokens has not", special.path(), name);
    Section ids(*named, s.at("special_tokens") + "." + name);
    const Json& list = ids.required("ids");
    for (size_t k = 0; k < list.size(); ++k) {
      int64_t id = id_in(list[k]);
      bool ok = id >= 0 && id < int64_t(t_->tokens.size()) && t_->tokens[size_t(id)];
      if (!ok) fail("[tokenizer] {}.ids has {}, which is no id of a token", ids.path(), list[k].dump());
      (behind ? t_->post.behind : t_->post.before).push_back(list[k].get<int32_t>());
    }
    item.end();
  }
  check(behind, "[tokenizer] {}.single leaves out the text", s.path());
}

void Reader::read_lengths() {
  auto direction = [](Section& s) {
    auto text = s.get<std::string>("direction", "Right");
    check(text == "Right" || text == "Left", "[tokenizer] {}.direction is {}, not Right or Left", s.path(), text);
    return text == "Left";
  };
  if (const Json& json = section_or_null(json_, "truncation"); !json.is_null()) {
    Section s(json, "truncation");
    for (const char* of_pairs_or_overflow : {"strategy", "stride"}) s.find(of_pairs_or_overflow);
    t_->truncation = Truncation{s.get<int64_t>("max_length"), direction(s)};
    s.end();
  }
  if (const Json& json = section_or_null(json_, "padding"); !json.is_null()) {
    Section s(json, "padding");
    int64_t to = 0;
    const Json& strategy = s.required("strategy");
    if (strategy.is_object()) {
      Section fixed(strategy, "padding.strategy");
      to = fixed.get<int64_t>("Fixed");
      fixed.end();
    } else {
      check(strategy == "BatchLongest", "[tokenizer] padding.strategy is {}, not BatchLongest or Fixed",
            strategy.dump());
    }
    s.find("pad_type_id"), s.find("pad_token");
    auto id = s.get<int32_t>("pad_id", 0);
    check(to <= most_ids, "[tokenizer] padding.strategy.Fixed is {}: more than {} is not supported", to, most_ids);
    t_->padding = Padding{to, s.get<int64_t>("pad_to_multiple_of", 0), id, direction(s)};
    s.end();
  }
}

void Reader::find_document_tokens() {
  auto first = [&](std::initializer_list<const char*> names) -> std::optional<int32_t> {
    for (bool special : {true, false})  // text may have been merged to a token of that name
      for (const char* name : names)
        if (auto found = t_->ids.find(std::string_view(name)); found != t_->ids.end())
          if (t_->special[size_t(found->second)] || !special) return found->second;
    return std::nullopt;
  };
  DocumentTokens& d = t_->document;
  d.begin = !t_->post.before.empty() ? std::optional(t_->post.before.back())
                                     : first({"[BOT]", "<|begin_of_text|>", "<s>", "[BOS]", "<bos>"});
  d.end = !t_->post.behind.empty() ? std::optional(t_->post.behind.front())
                                   : first({"[EOT]", "<|end_of_text|>", "<|endoftext|>", "</s>", "[EOS]", "<eos>"});
  d.pad =
      t_->padding ? std::optional(t_->padding->id) : first({"[PAD]", "<|finetune_right_pad_id|>", "<pad>", "<|pad|>"});
}

std::shared_ptr<const TokenizerParts> Reader::read() {
  Section s(json_, "tokenizer.json");
  auto version = s.get<std::string>("version", "1.0");
  check(version == "1.0", "[tokenizer] the file's version is {}: 1.0 is supported", version);
  for (const char* key :
       {"truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"})
    s.find(key);
  const Json& model = s.required("model");
  s.end();
  t_ = std::make_shared<TokenizerParts>();
  t_->normalizer = Normalizer(section_or_null(json_, "normalizer"), "normalizer");
  t_->pre_tokenizer = PreTokenizer(section_or_null(json_, "pre_tokenizer"), "pre_tokenizer");
  read_model(model);
  read_added(section_or_null(json_, "added_tokens"));
  read_post_processor(section_or_null(json_, "post_processor"), "post_processor");
  t_->decoder = Decoder(section_or_null(json_, "decoder"), "decoder");
  read_lengths();
  find_document_tokens();
  return t_;
}

}  // namespace

Tokenizer Tokenizer::parse(const nlohmann::ordered_json& json) {
  try {
    return Tokenizer(Reader(json).read());
  } catch (const nlohmann::json::exception& e) {
    fail("[tokenizer] this is no tokenizer.json: {}", e.what());
  }
}

Tokenizer Tokenizer::load(const std::string& file) {
  Json json = load_json(file, "tokenizer");
  try {
    return parse(json);
  } catch (const Error& e) {
    fail("{} (in {})", e.what(), file);
  }
}

Tokenizer Tokenizer::bytes() {
  Json vocabulary = Json::object(), added = Json::array();
  for (int b = 0; b < 256; ++b) vocabulary[byte_char(uint8_t(b))] = b;
  int id = 256;
  for (const char* name : {"[BOT]", "[EOT]", "[PAD]"})
    added.push_back({{"id", id++}, {"content", name}, {"special", true}, {"normalized", false}});
  Json byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  return parse({{"added_tokens", added},
                {"pre_tokenizer", byte_level},
                {"decoder", byte_level},
                {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}});
}

}  // namespace dtensor::nn
