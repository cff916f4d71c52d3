// The device's side of the experts mailbox. Aim: requests arrive whole, replies are added up, and a
// reply that is late, stale, refused or will never come fails the step without stopping the
// stream. Method: a thread plays the experts worker in page-locked memory, with the words of
// DeviceMailbox.

#include "worker/kernels/cuda/mailbox.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/gpu/harness.h"

namespace packtrain::cuda {
namespace {

using namespace gputest;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr int kTopK = 2;

uint64_t StepBits(uint64_t step) { return step << 24; }
uint64_t Word(uint64_t epoch, int layer) {
  return epoch << 48 | static_cast<uint64_t>(layer) << 12 | 1;
}

struct Words {
  alignas(64) uint64_t request;
  uint32_t call[3];
  alignas(64) uint64_t reply;
  uint32_t code;
  alignas(64) uint32_t closed;
};

// Memory of the mailbox, the device's state, and the worker's answer: row t of the reply is
// 2 * x[t] + the first id of t + 1000 * the second weight of t.
class Box {
 public:
  Box(int rows_max, int n) : n_(n), x_(size_t(rows_max) * n), picks_(size_t(rows_max) * kTopK) {
    const size_t bytes = sizeof(Words) + (2 * x_ + 2 * picks_ + 64) * 4 + 256;
    CUDA_OK(cudaHostAlloc(&memory_, bytes, cudaHostAllocMapped));
    std::memset(memory_, 0xff, bytes);
    CUDA_OK(cudaHostAlloc(&report_, sizeof(MailboxReport), cudaHostAllocMapped));
    words_ = reinterpret_cast<Words*>(memory_);
    *words_ = {};
    auto* at = reinterpret_cast<float*>(memory_ + sizeof(Words));
    x = at;
    y = at + (x_ + 15) / 16 * 16;
    weights = y + (x_ + 15) / 16 * 16;
    ids = reinterpret_cast<int32_t*>(weights + (picks_ + 15) / 16 * 16);
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  }
  ~Box() {
    StopWorker();
    cudaStreamDestroy(stream);
    cudaFreeHost(memory_);
    cudaFreeHost(report_);
  }

  MailboxRequest Request(int layer, int rows, const Device<float>& dx, const Device<int32_t>& dids,
                         const Device<float>& dweights, uint64_t timeout_ns = 20 * kSecond) {
    return {.mailbox = {.request = &words_->request,
                        .call = words_->call,
                        .reply = &words_->reply,
                        .code = &words_->code,
                        .closed = &words_->closed,
                        .x = x,
                        .ids = ids,
                        .weights = weights,
                        .y = y},
            .step = step_.get(),
            .report = report_,
            .word = Word(epoch, layer),
            .layer = layer,
            .rows = rows,
            .top_k = kTopK,
            .n = n_,
            .x = dx.get(),
            .ids = dids.get(),
            .weights = dweights.get(),
            .timeout_ns = timeout_ns};
  }

  void BeginStep(uint64_t step) {
    *report_ = {};
    const MailboxStep value = {.bits = StepBits(step)};
    CUDA_OK(cudaMemcpyAsync(step_.get(), &value, sizeof value, cudaMemcpyHostToDevice, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
  }
  void Wait() { CUDA_OK(cudaStreamSynchronize(stream)); }

  uint64_t request() { return std::atomic_ref(words_->request).load(std::memory_order_acquire); }
  void Reply(uint64_t word) { std::atomic_ref(words_->reply).store(word); }
  void Close() { std::atomic_ref(words_->closed).store(1); }

  // Answers every new word until stopped; the first is not answered before `delay`.
  void StartWorker(uint32_t code = 0, std::chrono::milliseconds delay = {}) {
    worker_ = std::thread([this, code, delay] {
      uint64_t served = 0;
      while (!stop_) {
        const uint64_t word = request();
        if (word == served) continue;
        if (served == 0) std::this_thread::sleep_for(delay);
        served = word;
        words.push_back(word);
        layers.push_back(words_->call[0]);
        for (uint32_t t = 0; t < words_->call[1]; ++t) {
          const float extra = float(ids[t * kTopK]) + 1000.0f * weights[t * kTopK + 1];
          for (int i = 0; i < n_; ++i) y[size_t(t) * n_ + i] = 2.0f * x[size_t(t) * n_ + i] + extra;
        }
        words_->code = code;
        Reply(word);
      }
    });
  }
  void StopWorker() {
    stop_ = true;
    if (worker_.joinable()) worker_.join();
    stop_ = false;
  }

  const MailboxReport& report() const { return *report_; }

  uint64_t epoch = 7;
  cudaStream_t stream = nullptr;
  float *x, *y, *weights;
  int32_t* ids;
  std::vector<uint64_t> words;  // as the worker saw them
  std::vector<uint32_t> layers;

 private:
  const int n_;
  const size_t x_, picks_;
  char* memory_ = nullptr;
  Words* words_ = nullptr;
  MailboxReport* report_ = nullptr;
  Device<MailboxStep> step_{1};
  std::atomic<bool> stop_{false};
  std::thread worker_;
};

// A request of random values on the device, and what comes of it.
struct Work {
  Work(Random* random, int rows, int n)
      : hx(random->Normals(size_t(rows) * n)),
        hshared(random->Normals(size_t(rows) * n)),
        hlogit(random->Normals(rows)),
        hweights(random->Normals(size_t(rows) * kTopK)),
        hids(size_t(rows) * kTopK),
        x(hx),
        shared(hshared),
        logit(hlogit),
        weights(hweights),
        ids(hids.size()),
        y(size_t(rows) * n) {
    for (int32_t& id : hids) id = random->Below(256);
    ids.Set(hids);
  }
  float Reply(int n, size_t i) const {
    const size_t t = i / size_t(n);
    return 2.0f * hx[i] + (float(hids[t * kTopK]) + 1000.0f * hweights[t * kTopK + 1]);
  }
  std::vector<float> hx, hshared, hlogit, hweights;
  std::vector<int32_t> hids;
  Device<float> x, shared, logit, weights;
  Device<int32_t> ids;
  Device<float> y;
};

void Enqueue(const MailboxRequest& request, const float* shared, const float* logit, float* y,
             cudaStream_t stream) {
  CUDA_OK(PostExperts(request, stream));
  CUDA_OK(AwaitExperts(request, stream));
  CUDA_OK(TakeExperts(request, shared, logit, y, stream));
}

GPU_TEST(ExpertsAreAskedAndAnsweredInTheStream) {
  Random random(70);
  for (int rows : {1, 3, 8, 40}) {
    for (int n : {30, 64, 6144}) {
      Box box(rows, n);
      Work work(&random, rows, n);
      box.StartWorker();
      for (int variant = 0; variant < 3; ++variant) {  // alone, + shared, + shared by its logit
        work.y.Poison();
        box.BeginStep(uint64_t(variant));
        Enqueue(box.Request(variant + 2, rows, work.x, work.ids, work.weights),
                variant == 0 ? nullptr : work.shared.get(),
                variant == 2 ? work.logit.get() : nullptr, work.y.get(), box.stream);
        box.Wait();
        Expect(box.report().failure == MailboxFailure::kNone, "no failure");
        Expect(box.report().awaited == 1, "one reply");
        Expect(box.report().waited_ns > 0 && box.report().waited_ns < 20 * kSecond, "time waited");
        const std::vector<float> got = work.y.Get();
        for (size_t i = 0; i < got.size(); ++i) {
          const float scale =
              variant < 2 ? float(variant) : 1.0f / (1.0f + std::exp(-work.hlogit[i / size_t(n)]));
          const double want = double(work.Reply(n, i)) + double(work.hshared[i]) * scale;
          ExpectNear(got[i], want, 1e-6 * (std::abs(want) + std::abs(work.hshared[i])) + 1e-30,
                     "sum");
        }
      }
      box.StopWorker();
      Expect(box.layers == std::vector<uint32_t>({2, 3, 4}), "layers");
      for (size_t i = 0; i < box.words.size(); ++i)
        Expect(box.words[i] == Word(7, int(i) + 2) + StepBits(i), "word");
    }
  }
}

// After a failure: the step is void, its later requests are not made, and nobody waits.
void ExpectFailure(Box* box, Work* work, MailboxFailure failure, uint32_t code,
                   uint64_t timeout_ns) {
  for (int layer : {5, 6, 7}) {
    work->y.Poison();
    Enqueue(box->Request(layer, 1, work->x, work->ids, work->weights,
                         layer == 5 ? timeout_ns : 20 * kSecond),
            nullptr, nullptr, work->y.get(), box->stream);
    box->Wait();
    for (float v : work->y.Get()) Expect(v == 0.0f, "a failed step's sums are zeros");
  }
  Expect(box->report().failure == failure, "kind of failure");
  Expect(box->report().layer == 5, "failed layer");
  Expect(box->report().code == code, "code");
  Expect(box->report().awaited == 3, "all requests were passed");
  Expect(box->report().waited_ns < 10 * kSecond, "nobody waited for later ones");
  Expect(box->request() == Word(7, 5) + StepBits(3), "later requests are not made");
}

GPU_TEST(ARequestPastItsDeadlineFailsTheStep) {
  Random random(71);
  Box box(1, 64);
  Work work(&random, 1, 64);
  box.BeginStep(3);
  ExpectFailure(&box, &work, MailboxFailure::kTimedOut, 0, 3'000'000);
  Expect(box.report().waited_ns >= 3'000'000, "waited as long as allowed");
}

GPU_TEST(AClosedMailboxFailsTheStepWhileItWaits) {
  Random random(72);
  Box box(1, 64);
  Work work(&random, 1, 64);
  box.BeginStep(3);
  std::thread closer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    box.Close();
  });
  ExpectFailure(&box, &work, MailboxFailure::kClosed, 0, 20 * kSecond);
  closer.join();
}

GPU_TEST(ARefusedRequestFailsTheStepWithItsCode) {
  Random random(73);
  Box box(1, 64);
  Work work(&random, 1, 64);
  box.StartWorker(9);
  box.BeginStep(3);
  ExpectFailure(&box, &work, MailboxFailure::kRefused, 9, 20 * kSecond);
}

GPU_TEST(StaleRepliesMatchNothing) {
  Random random(74);
  for (uint64_t stale : {Word(6, 5) + StepBits(3), Word(7, 5) + StepBits(2),
                         Word(7, 4) + StepBits(3), Word(8, 5) + StepBits(3), uint64_t{0}}) {
    Box box(1, 64);
    Work work(&random, 1, 64);
    box.Reply(stale);
    box.BeginStep(3);
    ExpectFailure(&box, &work, MailboxFailure::kTimedOut, 0, 2'000'000);
  }
}

GPU_TEST(AFailedStepLeavesNothingToTheNext) {
  Random random(75);
  Box box(1, 64);
  Work work(&random, 1, 64);
  box.BeginStep(3);
  ExpectFailure(&box, &work, MailboxFailure::kTimedOut, 0, 2'000'000);
  box.StartWorker();  // answers the old request first
  box.BeginStep(4);
  Enqueue(box.Request(5, 1, work.x, work.ids, work.weights), nullptr, nullptr, work.y.get(),
          box.stream);
  box.Wait();
  Expect(box.report().failure == MailboxFailure::kNone, "no failure");
  const std::vector<float> got = work.y.Get();
  for (size_t i = 0; i < got.size(); ++i)
    ExpectNear(got[i], work.Reply(64, i), 1e-6 * std::abs(work.Reply(64, i)) + 1e-30, "sum");
}

// Each layer's input is the sum before it, so that every reply must be the right one.
GPU_TEST(ARecordedStepReplaysWithNewWords) {
  constexpr int kLayers = 6, kReplays = 300, kN = 512;
  Random random(76);
  Box box(1, kN);
  Work work(&random, 1, kN);
  std::vector<std::unique_ptr<Device<float>>> sums;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA_OK(cudaStreamBeginCapture(box.stream, cudaStreamCaptureModeRelaxed));
  for (int layer = 0; layer < kLayers; ++layer) {
    sums.push_back(std::make_unique<Device<float>>(kN));
    Enqueue(box.Request(layer, 1, layer == 0 ? work.x : *sums[size_t(layer) - 1], work.ids,
                        work.weights),
            nullptr, nullptr, sums.back()->get(), box.stream);
  }
  CUDA_OK(cudaStreamEndCapture(box.stream, &graph));
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  box.StartWorker(0, std::chrono::milliseconds(5));
  for (int replay = 0; replay < kReplays; ++replay) {
    std::vector<float> x(kN, float(replay));
    work.x.Set(x);
    box.BeginStep(uint64_t(replay) + 1);
    CUDA_OK(cudaGraphLaunch(exec, box.stream));
    box.Wait();
    Expect(box.report().failure == MailboxFailure::kNone, "no failure");
    Expect(box.report().awaited == kLayers, "all replies");
    const float extra = float(work.hids[0]) + 1000.0f * work.hweights[1];
    float want = float(replay);
    for (int layer = 0; layer < kLayers; ++layer) want = 2.0f * want + extra;
    for (float got : sums.back()->Get())
      ExpectNear(got, want, 1e-5 * std::abs(want) + 1e-30, "sum");
  }
  box.StopWorker();
  Expect(box.words.size() == size_t(kLayers) * kReplays, "every request came once");
  for (size_t i = 0; i < box.words.size(); ++i) {
    Expect(box.words[i] == Word(7, int(i % kLayers)) + StepBits(i / kLayers + 1), "word");
  }
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
}

}  // namespace
}  // namespace packtrain::cuda
