// tokenizer TOKENIZER.json TEXT...: megabytes per second of encoding, ids alone, on one thread and on several; and of
// the loader, in tokens. tests/bench/peers/tokenizers_encode.py does the same with the tokenizers package.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <thread>

#include "nn/data/dataset.h"
#include "nn/data/documents.h"
#include "nn/tokenizer/tokenizer.h"
#include "placement/error.h"

using namespace dtensor;

namespace {

// Medians of five runs. The processor's time is that of all threads: on a machine that others use too, it is what
// counts.
struct Seconds {
  double wall, cpu;
};

template <class F>
Seconds median_seconds(F f) {
  std::vector<double> wall, cpu;
  for (int i = 0; i < 5; ++i) {
    auto begin = std::chrono::steady_clock::now();
    std::clock_t used = std::clock();
    f();
    wall.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    cpu.push_back(double(std::clock() - used) / CLOCKS_PER_SEC);
  }
  std::sort(wall.begin(), wall.end()), std::sort(cpu.begin(), cpu.end());
  return {wall[2], cpu[2]};
}

// Documents of some 10 kB, as data sets have them, cut at ends of lines.
std::vector<std::string> documents(const std::vector<std::string>& files) {
  std::vector<std::string> list;
  for (const std::string& file : files)
    nn::for_documents(file, [&](std::string_view text) {
      for (size_t at = 0; at < text.size();) {
        size_t end = std::min(text.find('\n', std::min(at + 10'000, text.size())), text.size() - 1) + 1;
        list.emplace_back(text.substr(at, end - at));
        at = end;
      }
    });
  return list;
}

}  // namespace

int main(int argc, char** argv) try {
  check(argc >= 3, "usage: tokenizer TOKENIZER.json TEXT...");
  nn::Tokenizer tokenizer = nn::Tokenizer::load(argv[1]);
  std::vector<std::string> files(argv + 2, argv + argc), texts = documents(files);
  size_t bytes = 0;
  for (const auto& t : texts) bytes += t.size();
  double mb = double(bytes) / 1e6;
  for (size_t threads : {1, 2}) {
    size_t tokens = 0;
    Seconds seconds = median_seconds([&] {
      std::vector<size_t> counts(threads);
      auto work = [&](size_t thread) {
        nn::Encoder encoder(tokenizer);
        std::vector<int32_t> ids;
        for (size_t i = thread; i < texts.size(); i += threads) {
          ids.clear();
          encoder.append(texts[i], ids);
          counts[thread] += ids.size();
        }
      };
      std::vector<std::jthread> others;
      for (size_t t = 1; t < threads; ++t) others.emplace_back(work, t);
      work(0);
      others.clear();
      tokens = 0;
      for (size_t c : counts) tokens += c;
    });
    fmt::print("encode, {} thread(s): {:.1f} MB/s, {:.1f} of the processor's time ({} tokens of {:.1f} MB)\n", threads,
               mb / seconds.wall, mb / seconds.cpu, tokens, mb);
  }
  constexpr int64_t seq = 1024;
  std::vector<nn::Dataset::Part> parts;
  parts.push_back({nn::TokenSource(files, tokenizer)});
  nn::Dataset data(std::move(parts), {.seq_len = seq, .shuffle = true});
  std::vector<int64_t> row(4 * seq);
  std::span<int64_t> all(row);
  double seconds =
      median_seconds([&] {
        for (int64_t n = 0; n < data.samples(); ++n)
          data.read(n, {all.first(seq), all.subspan(seq, seq), all.subspan(2 * seq, seq), all.subspan(3 * seq, seq)});
      }).cpu;
  fmt::print("dataset, shuffled: {:.1f} million tokens/s\n", double(data.samples() * seq) / seconds / 1e6);
} catch (const std::exception& e) {
  fmt::print(stderr, "tokenizer: {}\n", e.what());
  return 2;
}
