// Streams, events, captures and graphs.
#include <algorithm>
#include <chrono>

#include "tests/emulator/state.h"

namespace emulator {
namespace {

bool exists(cudaStream_t s) { return state().streams.count(s) != 0; }
bool exists(cudaEvent_t e) { return state().events.count(e) != 0; }

// Whether this thread of the host may do what would be forbidden.
cudaStreamCaptureMode& capture_mode() {
  static thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  return mode;
}

void spoil(Capture& c) { c.valid = false; }

// Does one piece of work that `p` needs, if there is one that can be done without waiting.
bool step(Lock& lock, const Point& p) {
  if (!p.stream || p.stream->done >= p.count || p.stream->running) return false;
  Item& item = p.stream->queue.front();
  for (const Point& q : item.after)
    if (q.stream && q.stream->done < q.count) return step(lock, q);
  if (item.ready && !item.ready()) return false;
  run_to(lock, {p.stream, p.stream->done + 1});
  return true;
}

// Other work that may run now, whatever the host waits for.
void run_by_schedule(Lock& lock, const Point& given) {
  State& s = state();
  if (s.schedule == Schedule::eager)
    while (step(lock, given)) {
    }
  if (s.schedule != Schedule::random) return;
  for (auto pieces = s.random() % 3; pieces > 0; --pieces) {
    auto at = std::next(s.streams.begin(), long(s.random() % s.streams.size()));
    std::shared_ptr<CUstream_st> stream = at->second;
    step(lock, {stream, stream->given});
  }
}

void run_item(Lock& lock, CUstream_st& stream) {
  Item& item = stream.queue.front();  // stays in place while others are added
  for (const Point& p : item.after) run_to(lock, p);
  while (item.ready && state().failure.empty() && !item.ready())
    state().changed.wait_for(lock, std::chrono::milliseconds(1));
  if (item.run && state().failure.empty()) {
    lock.unlock();
    std::string failure;
    try {
      item.run();
    } catch (const std::exception& e) {
      failure = e.what();
    }
    lock.lock();
    if (!failure.empty()) state().failure = failure;
  }
  stream.queue.pop_front();
}

cudaError_t add_node(CUstream_st& s, Node node) {
  if (!s.capture->valid) return cudaErrorStreamCaptureInvalidated;
  s.capture->nodes.push_back(std::move(node));
  s.tail = {s.capture->nodes.size() - 1};
  return cudaSuccess;
}

double now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void run_to(Lock& lock, const Point& point) {
  if (!point.stream || point.stream->done >= point.count) return;
  Access access;
  CUstream_st& stream = *point.stream;
  while (stream.done < point.count) {
    if (stream.running) {
      state().changed.wait(lock);
      continue;
    }
    stream.running = true;
    run_item(lock, stream);
    stream.running = false;
    ++stream.done;
    state().changed.notify_all();
  }
}

void run_all(Lock& lock, int device) {
  std::vector<Point> points;
  for (auto& [_, s] : state().streams)
    if (device < 0 || s->device == device) points.push_back({s, s->given});
  for (const Point& p : points) run_to(lock, p);
}

cudaError_t give(Lock& lock, cudaStream_t stream, Work run, std::vector<Point> after, std::function<bool()> ready) {
  if (!exists(stream)) return cudaErrorInvalidResourceHandle;  // the default stream is not used
  CUstream_st& s = *stream;
  if (s.capture) return add_node(s, {std::move(run), nullptr, s.tail});
  s.queue.push_back({std::move(run), std::move(after), std::move(ready)});
  run_by_schedule(lock, {state().streams[stream], ++s.given});
  return cudaSuccess;
}

void give_external(cudaStream_t stream, std::function<External()> begin) {
  Lock lock(state().mutex);
  if (exists(stream) && stream->capture) {
    add_node(*stream, {nullptr, std::move(begin), stream->tail});
    return;
  }
  External e = begin();
  give(lock, stream, std::move(e.run), {}, std::move(e.ready));
}

void go_on() {
  Lock lock(state().mutex);
  auto streams = state().streams;  // held, as others may destroy them meanwhile
  for (auto& [_, s] : streams) step(lock, {s, s->given});
}

bool is_capturing(cudaStream_t stream) {
  Lock lock(state().mutex);
  return exists(stream) && stream->capture;
}

cudaError_t forbidden_in_capture() {
  if (capture_mode() == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  for (auto& c : state().captures)
    if (c->thread == std::this_thread::get_id()) return spoil(*c), cudaErrorStreamCaptureUnsupported;
  return cudaSuccess;
}

namespace {

// The host waits for, or asks about, a stream or device.
cudaError_t forbidden(CUstream_st& s) {
  if (!s.capture) return forbidden_in_capture();
  spoil(*s.capture);
  return cudaErrorStreamCaptureUnsupported;
}
cudaError_t forbidden(CUevent_st& e) {
  if (!e.capture) return forbidden_in_capture();
  spoil(*e.capture);
  return cudaErrorCapturedEvent;
}

// Does a piece of work and says "not ready" if there was any, so that polling ends but is not in vain; never waits.
cudaError_t query(Lock& lock, const Point& p) {
  if (!p.stream || p.stream->done >= p.count) return cudaSuccess;
  step(lock, p);
  return state().failure.empty() ? cudaErrorNotReady : cudaErrorLaunchFailure;
}

cudaError_t wait_for(Lock& lock, const Point& p) {
  run_to(lock, p);
  return state().failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

// `s` goes on after a captured event: joins that capture.
cudaError_t join(CUstream_st& s, const CUevent_st& e) {
  if (!e.capture->active) return cudaErrorCapturedEvent;
  if (s.capture && s.capture != e.capture) {
    spoil(*s.capture), spoil(*e.capture);
    return cudaErrorStreamCaptureMerge;
  }
  s.capture = e.capture;
  s.capture->streams.insert(&s);
  s.tail.insert(s.tail.end(), e.tail.begin(), e.tail.end());
  return cudaSuccess;
}

void leave(Capture& c) {
  for (CUstream_st* s : c.streams) s->capture = nullptr, s->tail.clear();
  c.active = false;
}

// All that streams did which joined `c` is before the end of its origin.
bool is_joined(const Capture& c) {
  std::vector<bool> before(c.nodes.size());
  std::vector<size_t> open = c.origin->tail;
  while (!open.empty()) {
    size_t n = open.back();
    open.pop_back();
    if (before[n]) continue;
    before[n] = true;
    open.insert(open.end(), c.nodes[n].after.begin(), c.nodes[n].after.end());
  }
  for (CUstream_st* s : c.streams)
    for (size_t n : s->tail)
      if (!before[n]) return false;
  return true;
}

// One launch of a graph: of what may run, what was captured last runs first.
class Replay {
 public:
  explicit Replay(std::shared_ptr<const std::vector<Node>> nodes) : nodes_(std::move(nodes)) {
    missing_.resize(nodes_->size()), then_.resize(nodes_->size()), external_.resize(nodes_->size());
    for (size_t i = 0; i < nodes_->size(); ++i) {
      const Node& node = (*nodes_)[i];
      if (node.external) external_[i] = node.external();
      missing_[i] = node.after.size();
      for (size_t before : node.after) then_[before].push_back(i);
      if (!missing_[i]) open_.insert(i);
    }
  }

  bool ready() const {
    return std::any_of(open_.begin(), open_.end(), [&](size_t i) { return ready(i); });
  }

  // One node.
  void run() {
    auto at = std::find_if(open_.rbegin(), open_.rend(), [&](size_t i) { return ready(i); });
    size_t i = *at;
    open_.erase(i);
    if (external_[i].run)
      external_[i].run();
    else if ((*nodes_)[i].run)
      (*nodes_)[i].run();
    for (size_t next : then_[i])
      if (--missing_[next] == 0) open_.insert(next);
  }

 private:
  bool ready(size_t i) const { return !external_[i].ready || external_[i].ready(); }

  std::shared_ptr<const std::vector<Node>> nodes_;
  std::vector<size_t> missing_;
  std::vector<std::vector<size_t>> then_;
  std::vector<External> external_;
  std::set<size_t> open_;
};

}  // namespace
}  // namespace emulator

using namespace emulator;

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call([&](Lock&) { return *least = 0, *greatest = -5, cudaSuccess; });
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return call([&](Lock&) {
    if (flags != cudaStreamNonBlocking) return cudaErrorNotSupported;  // would wait for the default stream
    if (current_device() >= state().devices) return cudaErrorNoDevice;
    auto s = std::make_shared<CUstream_st>();
    s->device = current_device();
    state().streams[s.get()] = s;
    *stream = s.get();
    return cudaSuccess;
  });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Lock lock(state().mutex);  // possible after an error too
  auto at = state().streams.find(stream);
  if (at == state().streams.end()) return noted(cudaErrorInvalidResourceHandle);
  std::shared_ptr<CUstream_st> s = at->second;
  if (s->capture) spoil(*s->capture), s->capture->streams.erase(stream);
  run_to(lock, {s, s->given});
  state().streams.erase(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&](Lock& lock) {
    if (!exists(stream)) return cudaErrorInvalidResourceHandle;
    if (cudaError_t e = forbidden(*stream)) return e;
    return wait_for(lock, {state().streams[stream], stream->given});
  });
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call([&](Lock& lock) {
    if (!exists(stream)) return cudaErrorInvalidResourceHandle;
    if (cudaError_t e = forbidden(*stream)) return e;
    return query(lock, {state().streams[stream], stream->given});
  });
}
cudaError_t cudaDeviceSynchronize() {
  return call([&](Lock& lock) {
    for (auto& [_, s] : state().streams)
      if (s->capture && s->device == current_device()) return forbidden(*s);
    if (cudaError_t e = forbidden_in_capture()) return e;
    run_all(lock, current_device());
    return state().failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* argument) {
  return call([&](Lock& lock) { return give(lock, stream, [=] { function(argument); }); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call([&](Lock&) {
    if (current_device() >= state().devices) return cudaErrorNoDevice;
    *event = new CUevent_st;
    (*event)->device = current_device(), (*event)->timing = !(flags & cudaEventDisableTiming);
    state().events.insert(*event);
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Lock lock(state().mutex);
  if (!state().events.erase(event)) return noted(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&](Lock& lock) {
    if (!exists(event) || !exists(stream) || event->device != stream->device) return cudaErrorInvalidResourceHandle;
    event->capture = stream->capture, event->tail = stream->tail, event->point = {};
    if (stream->capture) return stream->capture->valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
    auto time = event->milliseconds = std::make_shared<double>(0);
    event->point = {state().streams[stream], stream->given + 1};
    return give(lock, stream, [time] { *time = now(); });
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call([&](Lock& lock) {
    if (!exists(event) || !exists(stream)) return cudaErrorInvalidResourceHandle;
    if (event->capture) return join(*stream, *event);
    if (stream->capture && event->point.stream) return spoil(*stream->capture), cudaErrorStreamCaptureIsolation;
    if (!event->point.stream) return cudaSuccess;  // was never recorded
    return give(lock, stream, nullptr, {event->point});
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&](Lock& lock) {
    if (!exists(event)) return cudaErrorInvalidResourceHandle;
    if (cudaError_t e = forbidden(*event)) return e;
    return wait_for(lock, event->point);
  });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return call([&](Lock& lock) {
    if (!exists(event)) return cudaErrorInvalidResourceHandle;
    if (cudaError_t e = forbidden(*event)) return e;
    return query(lock, event->point);
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return call([&](Lock&) {
    for (cudaEvent_t e : {begin, end}) {
      if (!exists(e) || !e->timing || !e->point.stream) return cudaErrorInvalidResourceHandle;
      if (e->point.stream->done < e->point.count) return cudaErrorNotReady;
    }
    *milliseconds = float(*end->milliseconds - *begin->milliseconds);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call([&](Lock&) {
    if (!exists(stream)) return cudaErrorInvalidResourceHandle;
    if (mode != cudaStreamCaptureModeThreadLocal) return cudaErrorNotSupported;
    if (stream->capture) return spoil(*stream->capture), cudaErrorInvalidValue;
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream, stream->capture->thread = std::this_thread::get_id();
    stream->capture->streams = {stream};
    state().captures.insert(stream->capture);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&](Lock&) {
    *graph = nullptr;
    if (!exists(stream)) return cudaErrorInvalidResourceHandle;
    if (!stream->capture) return cudaErrorInvalidValue;
    std::shared_ptr<Capture> c = stream->capture;
    if (c->origin != stream) return spoil(*c), cudaErrorStreamCaptureUnmatched;
    if (c->thread != std::this_thread::get_id()) return spoil(*c), cudaErrorStreamCaptureWrongThread;
    bool joined = is_joined(*c);
    leave(*c);
    state().captures.erase(c);
    if (!c->valid || !joined) {
      c->nodes.clear();
      return c->valid ? cudaErrorStreamCaptureUnjoined : cudaErrorStreamCaptureInvalidated;
    }
    *graph = new CUgraph_st{std::move(c->nodes)};
    ++state().graphs;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call([&](Lock&) {
    if (!exists(stream)) return cudaErrorInvalidResourceHandle;
    *status = !stream->capture         ? cudaStreamCaptureStatusNone
              : stream->capture->valid ? cudaStreamCaptureStatusActive
                                       : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
  });
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, capture_mode()), cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return call([&](Lock&) {
    if (nodes) return cudaErrorNotSupported;
    return *count = graph->nodes.size(), cudaSuccess;
  });
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return call([&](Lock&) {
    *exec = new CUgraphExec_st{std::make_shared<std::vector<Node>>(graph->nodes)};
    ++state().graphs;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return call([&](Lock& lock) {
    auto replay = std::make_shared<Replay>(exec->nodes);
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < exec->nodes->size() && !e; ++i)
      e = give(
          lock, stream, [replay] { replay->run(); }, {}, [replay] { return replay->ready(); });
    return e;
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  Lock lock(state().mutex);
  delete graph;
  --state().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  Lock lock(state().mutex);
  delete exec;
  --state().graphs;
  return cudaSuccess;
}
