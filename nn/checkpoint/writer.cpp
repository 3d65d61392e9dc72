#include <atomic>
#include <chrono>

#include "dtensor/agree.h"
#include "dtensor/local/copy_async.h"
#include "nn/checkpoint/contents.h"
#include "nn/checkpoint/crc32c.h"
#include "nn/checkpoint/pieces.h"
#include "nn/json.h"

namespace dtensor::nn {
namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

namespace {

constexpr const char* who = "save_checkpoint";
constexpr const char* checksums = "crc32c";  // the key of a file's metadata

double since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::span<const std::byte> bytes_of(const Tensor& t) { return {t.bytes_data(), size_t(t.bytes())}; }

std::string hex(uint32_t n) { return fmt::format("{:08x}", n); }

fs::path temporary(const fs::path& folder) {
  fs::path beside = folder;
  return beside += ".tmp";
}

}  // namespace

// All that a writing thread needs: nothing of it is the rank's any more.
struct CheckpointWriter::Job {
  struct Stored {
    std::string name;
    DType dtype;
    Shape shape;
    std::vector<Piece> pieces;
  };
  // writing: this rank's part; committing: rank 0 waits for the others' and gives the folder its name.
  enum Stage { writing, committing, over };

  fs::path folder;  // its last name
  MeshShape mesh;
  int rank;
  Json values;
  std::vector<Stored> tensors;
  std::vector<NamedSpec> mine;    // what this rank writes
  std::vector<Tensor> copies;     // of these, on the host
  std::vector<AsyncCopy> moving;  // these copies
  std::function<void()> after;
  double stalled_seconds = 0, written_seconds = 0;
  int64_t bytes = 0;

  std::atomic<Stage> stage = writing;
  std::atomic<bool> stop = false;
  // Of this rank's part, and of what rank 0 does then. A part that failed because another rank's did is `commit`'s.
  std::exception_ptr part_error, commit_error;

  void run();
  void write_part();
  void wait_for_parts() const;
  Json index() const;
  void commit();
  void enter(Stage s) {
    stage = s;
    stage.notify_all();
  }
};

void CheckpointWriter::Job::write_part() {
  for (AsyncCopy& c : moving) c.synchronize();
  if (mine.empty()) return;
  Json sums = Json::object();
  for (size_t i = 0; i < mine.size(); ++i) sums[mine[i].name] = hex(crc32c(bytes_of(copies[i])));
  save_safetensors(temporary(folder) / rank_file(rank), mine, [&](size_t i) { return copies[i]; },
                   {{checksums, sums.dump()}});
}

// Until every rank's file is there. A rank that cannot write its own removes the folder.
void CheckpointWriter::Job::wait_for_parts() const {
  auto is_coming = [&](const fs::path& file) { return !stop && !fs::exists(file) && fs::exists(temporary(folder)); };
  for (const Stored& t : tensors)
    for (const Piece& piece : t.pieces)
      while (is_coming(temporary(folder) / rank_file(piece.rank)))
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

Json CheckpointWriter::Job::index() const {
  std::map<std::string, std::map<std::string, std::string>> sums;  // by file, by tensor
  Json list = Json::object();
  for (const Stored& t : tensors) {
    Json pieces = Json::array();
    for (const Piece& piece : t.pieces) {
      std::string file = rank_file(piece.rank);
      if (!sums.contains(file)) {
        std::string text = SafetensorsFile(temporary(folder) / file).metadata().at(checksums);
        sums[file] = parse_json(text, file, who).get<std::map<std::string, std::string>>();
      }
      Json box = Json::array();
      for (int d = 0; d < piece.box.dims; ++d) box.push_back({piece.box[d].begin, piece.box[d].end});
      pieces.push_back({{"file", file}, {"box", box}, {"crc32c", sums[file].at(t.name)}});
    }
    std::vector<int64_t> shape(t.shape.begin(), t.shape.end());
    list.push_back({t.name, {{"dtype", name(t.dtype)}, {"shape", shape}, {"pieces", pieces}}});
  }
  Json all{{"format", checkpoint_format}, {"mesh", to_string(mesh)}, {"values", values}, {"tensors", list}};
  std::string text = all.dump();
  all["crc32c"] = hex(crc32c(std::as_bytes(std::span(text))));
  return all;
}

void CheckpointWriter::Job::commit() {
  fs::path beside = temporary(folder);
  NewFile out(beside / "checkpoint.json", who);
  out.write(index().dump(1) + "\n");
  out.close();
  sync_folder(beside, who);
  Checkpoint written(beside);  // the pieces tile their tensors, and are in their files
  publish_folder(beside, folder, who);
}

void CheckpointWriter::Job::run() {
  Clock::time_point begin = Clock::now();
  try {
    write_part();
    enter(committing);
    if (rank == 0) {
      wait_for_parts();
      commit();
      if (after) after();
    }
  } catch (...) {
    std::error_code ignored;
    bool of_another = !fs::exists(temporary(folder), ignored);
    (stage == writing && !of_another ? part_error : commit_error) = std::current_exception();
    fs::remove_all(temporary(folder), ignored);
  }
  written_seconds = since(begin);
  moving.clear();
  enter(over);
}

CheckpointWriter::~CheckpointWriter() {
  if (running_) running_->stop = true;
  if (thread_.joinable()) thread_.join();
}

std::shared_ptr<CheckpointWriter::Job> CheckpointWriter::prepare(const fs::path& folder,
                                                                 const CheckpointContents& contents) {
  auto job = std::make_shared<Job>();
  job->folder = folder, job->mesh = mesh_.shape(), job->rank = mesh_.rank(), job->values = contents.values;
  job->after = after;
  for (const auto& [name, x] : contents.tensors) {
    if (x.is_meta()) fail("[{}] {} is a meta tensor, which has no value", who, name);
    if (x.mesh() != mesh_) fail("[{}] {} lies on another mesh: {}", who, name, difference(x.mesh(), mesh_));
    Job::Stored stored{name, x.dtype(), x.shape(), pieces_of(mesh_.shape(), x.spec())};
    job->bytes += numel(x.shape()) * itemsize(x.dtype());
    job->tensors.push_back(std::move(stored));
  }
  if (mesh_.rank() != 0) return job;
  std::error_code error;
  fs::remove_all(temporary(folder), error);  // of a run that was killed
  fs::create_directories(temporary(folder), error);
  if (error) fail("[{}] cannot make the folder {}: {}", who, temporary(folder).string(), error.message());
  return job;
}

// What this rank writes goes to the host, into the memory of the time before where it fits.
void CheckpointWriter::copy_pieces(Job& job, const CheckpointContents& contents) {
  Rank& rank = mesh_.rank_state();
  for (size_t i = 0; i < job.tensors.size(); ++i)
    for (const Piece& piece : job.tensors[i].pieces) {
      if (piece.rank != job.rank) continue;
      const DistributedTensor& x = contents.tensors[i].second;
      Tensor part = x.local().contiguous();
      if (x.dims() > 0) part = part.narrow(0, piece.box[0].begin - x.spec().box[0].begin, piece.box[0].size());
      size_t n = job.copies.size();
      if (buffers_.size() <= n) buffers_.resize(n + 1);
      Tensor& buffer = buffers_[n];
      if (!buffer.defined() || buffer.dtype() != part.dtype() || buffer.shape() != part.shape())
        buffer = Tensor(rank.host_allocator(), part.dtype(), part.shape());
      job.moving.push_back(copy_async(part, buffer));
      job.copies.push_back(buffer);
      job.mine.push_back({job.tensors[i].name, part.dtype(), part.shape()});
    }
  for (AsyncCopy& c : job.moving) c.wait();
}

void CheckpointWriter::begin(const fs::path& folder, const CheckpointItems& items) {
  wait();
  Clock::time_point begin = Clock::now();
  std::shared_ptr<Job> job;
  CheckpointContents contents;
  agree_on_error(mesh_, [&] {
    contents = contents_of(items);
    job = prepare(folder, contents);
  });
  copy_pieces(*job, contents);
  thread_ = start_thread(who, [job] { job->run(); });
  running_ = job;
  job->stalled_seconds = since(begin);
}

bool CheckpointWriter::is_done() const { return !running_ || running_->stage == Job::over; }

std::optional<CheckpointWriter::Written> CheckpointWriter::wait() {
  if (!running_) return {};
  std::shared_ptr<Job> job = std::exchange(running_, nullptr);
  auto agree = [&](const std::exception_ptr& error) {
    agree_on_error(mesh_, [&] {
      if (error) std::rethrow_exception(error);
    });
  };
  // First that all parts are written: while rank 0 waits for files, a rank that died is found by this collective.
  job->stage.wait(Job::writing);
  try {
    agree(job->part_error);
  } catch (...) {
    job->stop = true;
    thread_.join();
    throw;
  }
  thread_.join();
  agree(job->commit_error);
  return Written{job->folder, job->stalled_seconds, job->written_seconds, job->bytes};
}

CheckpointWriter::Written save_checkpoint(const DeviceMesh& mesh, const fs::path& folder,
                                          const CheckpointItems& items) {
  CheckpointWriter writer(mesh);
  writer.begin(folder, items);
  return *writer.wait();
}

}  // namespace dtensor::nn
