// Ranks that are processes, started by mpirun: the program `ranks` beside this one, and llama_pretrain.
#include <fmt/format.h>

#include <chrono>
#include <functional>

#include "tests/examples/programs.h"

using namespace dtensor::testing;

namespace {

struct Ended : Result {
  double seconds;
  // Lines of ours about what went wrong: mpirun writes others.
  Words messages;
};

Ended timed(const std::function<Result()>& f) {
  auto begin = std::chrono::steady_clock::now();
  Ended e{f(), 0, {}};
  e.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (const std::string& line : lines_of(e.err))
    if (line.find("(rank ") != line.npos) e.messages.push_back(line);
  return e;
}

// The sanitizers find what MPI itself does not give back. Open MPI's runs that begin and end at once dispute the folder
// that they have in common by default: the tests of this process have their own.
Words mpirun_words(int ranks) {
  static const Folder sessions;
  return {"/usr/bin/env", "ASAN_OPTIONS=detect_leaks=0", "OMPI_MCA_orte_tmpdir_base=" + sessions.path.string(),
          MPIEXEC,        "--allow-run-as-root",         "--oversubscribe",
          "-n",           std::to_string(ranks)};
}

Ended mpirun(int ranks, const Words& command) {
  Words words = mpirun_words(ranks) + command;
  return timed([&] { return run(words[0], Words(words.begin() + 1, words.end())); });
}

Ended ranks(int n, const std::string& name, double deadline = 60, int64_t largest_message = 1 << 30) {
  return mpirun(n, {MPI_RANKS, name, std::to_string(deadline), std::to_string(largest_message)});
}

void expect_fine(const Ended& e) {
  INFO(e.err);
  CHECK(e.code == 0);
  CHECK(e.out == "fine\n");
}

const std::string tiny = source("examples/configs/llama_tiny.json"), text = source("README.md");

Words llama(const std::string& mesh, const std::string& plan, int steps, const Words& more = {}) {
  return Words{DTENSOR_BIN_DIR "/llama_pretrain",
               "--model",
               tiny,
               "--data",
               text,
               "--batch-size",
               "4",
               "--seq-len",
               "32",
               "--steps",
               std::to_string(steps),
               "--mesh",
               mesh,
               "--plan",
               source("examples/plans/" + plan + ".json")} +
         more;
}

// The numbers of each step, without times.
Words numbers(const std::string& metrics) {
  Words lines;
  for (const std::string& line : lines_of(read(metrics)))
    if (Json j = Json::parse(line); j.contains("loss"))
      lines.push_back(fmt::format("{} {} {}", j["step"].dump(), j["loss"].dump(), j["grad_norm"].dump()));
  return lines;
}

}  // namespace

TEST_CASE("law 6: collectives by MPI and sums in the balanced tree of ranks") {
  for (int n : {1, 2, 3, 4, 5}) expect_fine(ranks(n, "collectives"));
}

TEST_CASE("what is larger than a message of MPI goes in parts") {
  expect_fine(ranks(3, "collectives", 60, 100));
  expect_fine(ranks(2, "lanes", 60, 1000));
}

TEST_CASE("two gigabytes and ten bytes are one message", "[nightly]") { expect_fine(ranks(2, "large", 600)); }

TEST_CASE("groups of processes split, and their collectives may be waited for in any order") {
  for (int n : {2, 4}) expect_fine(ranks(n, "split"));
}

TEST_CASE("more communicators than there are tags for are an error, and the others go on") {
  expect_fine(ranks(2, "many_groups"));
}

TEST_CASE("messages between processes come in order, and lanes do not wait for each other") {
  for (int n : {2, 3}) expect_fine(ranks(n, "lanes"));
}

TEST_CASE("what is begun and dropped is no trouble for what comes later") { expect_fine(ranks(3, "dropped")); }

TEST_CASE("law 9: a process that fails, hangs or disagrees ends all within the deadline, with one message") {
  struct Case {
    const char* name;
    double deadline;
    std::vector<std::string> parts;
  };
  for (const Case& c : std::vector<Case>{
           {"throws",
            60,
            {"[throws] the disk is full; it had last begun all_reduce(sum) f32[4] in model.norm (rank 1 of 3, host "}},
           {"killed",
            60,
            {"rank 1 (host ", ") failed: its process has ended without a word, killed perhaps", "; rank 0 (host ",
             "was in all_reduce(sum) f32[8] in model.norm (rank 0 of 3, host "}},
           {"first_killed",
            60,
            {"rank 0 (host ", ") failed: its process has ended without a word, killed perhaps",
             "was in all_reduce(sum) f32[8] in model.norm (rank 1 of 3, host "}},
           {"sleeps",
            1,
            {"[all_reduce] not complete after 1 s: rank ", " waits for rank 1 (host ",
             "in all_reduce(sum) f32[8] in model.norm; rank 1 (host ", "has last begun all_reduce(sum) f32[4] (rank "}},
           {"disagrees",
            60,
            {"[collective] rank ", "rank 1 (host ", "disagree: ", "\"all_reduce(sum) f32[3000] in model.norm\"",
             " and ", "\"all_reduce(sum) f32[5] in model.norm\""}},
           {"disagrees_in_bytes",
            60,
            {"[collective] rank ", "rank 0 (host ", "rank 1 (host ", "disagree: ", "\"all_to_all f32[2+2+2->2+2+2]\"",
             " and ", "\"all_to_all f32[2+2+2->3+2+2]\""}},
           {"returns",
            60,
            {"[all_reduce] rank 1 (host ", ") has ended (its function returned), but rank ",
             "waits for it in all_reduce(sum) f32[8] in model.norm"}},
           {"sleeps_at_the_end",
            1,
            {"[end] not complete after 1 s: rank ", ") has ended, but rank 1 (host ", ") has not"}},
           {"sleeps_in_teardown",
            1,
            {"[end] not complete after 1 s: rank ", ") has ended, but rank 1 (host ", ") has not; rank 1 (host ",
             "has last begun all_reduce(sum) f32[4] (rank "}},
           {"meta",
            60,
            {"[all_reduce] MPI moves tensors in host memory, but one of 4 elements is on meta: on GPUs use --comm "
             "nccl"}},
       }) {
    Ended e = ranks(3, c.name, c.deadline);
    INFO(c.name << " took " << e.seconds << " s: " << e.err);
    CHECK(e.code != 0);
    CHECK(e.seconds < 10);
    for (const std::string& part : c.parts) CHECK_THAT(e.err, Contains(part));
    if (std::string(c.name) != "meta") CHECK(e.messages.size() == 1);
  }
}

TEST_CASE("law 6: losses of processes are those of threads, bit for bit") {
  struct Case {
    const char *mesh, *plan;
    int ranks;
  };
  for (const Case& c : {Case{"dp=2", "ddp", 2}, Case{"tp=2", "tp_sp_loss", 2}, Case{"dp=2", "fsdp", 2},
                        Case{"dp=2,tp=2", "fsdp_tp", 4}}) {
    Folder folder;
    Words threads = llama(c.mesh, c.plan, 3, {"--metrics", folder / "threads"});
    Result t = run(threads[0], Words(threads.begin() + 1, threads.end()));
    Ended m = mpirun(c.ranks, llama(c.mesh, c.plan, 3, {"--metrics", folder / "mpi", "--launch", "mpi"}));
    INFO(c.mesh << " " << c.plan << ": " << t.err << m.err);
    REQUIRE(t.code == 0);
    REQUIRE(m.code == 0);
    CHECK(numbers(folder / "threads").size() == 3);
    CHECK(numbers(folder / "mpi") == numbers(folder / "threads"));
  }
}

// Trains on two processes until three steps are done, then sends `signal` to rank 1, or to mpirun.
Ended train_and_signal(const Folder& folder, const std::string& signal, bool to_mpirun, const Words& more) {
  const char* script = R"sh(
    folder=$1 signal=$2 whom=$3; shift 3
    "$@" & mpirun=$!
    until [ "$(grep -c '"loss"' "$folder/metrics" 2>/dev/null)" -ge 3 ] 2>/dev/null; do
      kill -0 $mpirun || exit 99
      sleep 0.02
    done
    if [ $whom = mpirun ]; then kill -$signal $mpirun; else kill -$signal $(cat "$folder/pid1"); fi
    wait $mpirun
  )sh";
  Words write_pid{"/bin/sh", "-c", "echo $$ > " + folder / "pid$OMPI_COMM_WORLD_RANK" + "; exec \"$@\"", "sh"};
  Words mpirun = mpirun_words(2);
  if (to_mpirun) mpirun = mpirun + Words{"--mca", "odls_base_sigkill_timeout", "5"};  // instead of a second
  return timed([&] {
    return run("/bin/sh",
               Words{"-c", script, "sh", folder / "", signal, to_mpirun ? "mpirun" : "rank"} + mpirun + write_pid +
                   llama("dp=2", "fsdp", 100000, {"--launch", "mpi", "--metrics", folder / "metrics"}) + more);
  });
}

TEST_CASE("a signal to any process finishes the step of all, with a checkpoint and 0") {
  struct Case {
    const char* signal;
    bool to_mpirun;
  };
  for (const Case& c : {Case{"TERM", false}, Case{"INT", false}, Case{"TERM", true}}) {
    Folder folder;
    Ended e = train_and_signal(folder, c.signal, c.to_mpirun, {"--checkpoint-dir", folder / "run"});
    INFO(c.signal << ": " << e.out << e.err);
    if (!c.to_mpirun) CHECK(e.code == 0);  // else that of mpirun, which says that it was told to end
    Json inspected = Json::parse(run("checkpoint_inspect", {folder / "run", "--json"}).out);
    CHECK(inspected["values"]["step"] == numbers(folder / "metrics").size());
  }
}

TEST_CASE("law 9: a rank that is killed or stopped in training ends all within the deadline") {
  struct Case {
    const char *signal, *message;
  };
  for (const Case& c : {Case{"KILL", ") failed: its process has ended without a word, killed perhaps"},
                        Case{"STOP", " not complete after 2 s: rank 0 (host "}}) {
    Folder folder;
    Ended e = train_and_signal(folder, c.signal, false, {"--deadline", "2"});
    INFO(c.signal << " took " << e.seconds << " s: " << e.err);
    CHECK(e.code != 0);
    CHECK(e.seconds < 20);
    REQUIRE(!e.messages.empty());  // one that was stopped may wake up once more when mpirun ends it
    CHECK_THAT(e.messages[0], Contains(c.message) && Contains("rank 1 (host "));
    CHECK_THAT(e.messages[0], Contains(" in the forward pass") || Contains(" in the backward pass") ||
                                  Contains(" in the optimizer step") || Contains(" in the agreement to stop"));
  }
}

TEST_CASE("a launcher and a mesh or --launch that do not fit are errors of the command line") {
  Ended e = mpirun(2, llama("dp=4", "ddp", 1, {"--launch", "mpi"}));
  CHECK(e.code == 2);
  CHECK_THAT(e.err, Contains("[llama_pretrain] --mesh dp=4 has 4 ranks, but Open MPI started 2"));
  e = mpirun(2, llama("dp=2", "ddp", 1));
  CHECK(e.code == 2);
  CHECK_THAT(e.err, Contains("[llama_pretrain] Open MPI started 2 processes, but with --launch threads each would be a "
                             "run of its own: give --launch mpi, or start one process"));
}

TEST_CASE("processes that are given other data sizes end with what they disagree on") {
  Words words = llama("dp=2", "ddp", 3, {"--launch", "mpi", "--checkpoint-every", "0"});
  Words other = words;
  *(std::find(other.begin(), other.end(), "--seq-len") + 1) = "16";
  Ended e = mpirun(1, words + Words{":", "-n", "1"} + other);
  INFO(e.err);
  CHECK(e.code != 0);
  CHECK(e.seconds < 20);
  CHECK(e.messages.size() == 1);
  CHECK_THAT(e.err, Contains("[llama_pretrain] this process was given another --data, --batch-size and --seq-len than "
                             "that of rank 0, and has [{\"samples\":0,\"mode\":\"pack\",\"seq_len\":16"));
}
