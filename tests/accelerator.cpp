// A device that is not the CPU, for tests on machines without one: "fake:0".
//
// Its memory is the host's and the CPU computes for it, but torch sees tensors of another device. What an accelerator
// would refuse is refused here: tensors of two devices in one operation, and the CPU's generator. What is allocated is
// counted, so that a test can say how much of the device a run takes.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/FakeGuardImpl.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>

namespace {

constexpr auto kFake = c10::DeviceType::PrivateUse1;
constexpr std::size_t kHeader = 64;
std::atomic<int64_t> allocated{0};
std::atomic<int64_t> most{0};

void release(void* data) {
  if (data == nullptr) return;
  void* start = static_cast<char*>(data) - kHeader;
  allocated -= *static_cast<int64_t*>(start);
  std::free(start);
}

struct Counted final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(kFake, 0)};
    void* start = std::aligned_alloc(kHeader, kHeader * (2 + (bytes - 1) / kHeader));
    TORCH_CHECK(start != nullptr, "out of memory");
    *static_cast<int64_t*>(start) = static_cast<int64_t>(bytes);
    const int64_t now = allocated += static_cast<int64_t>(bytes);
    int64_t before = most;
    while (before < now && !most.compare_exchange_weak(before, now)) {
    }
    void* data = static_cast<char*>(start) + kHeader;
    return {data, data, &release, c10::Device(kFake, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};
Counted counted;
REGISTER_ALLOCATOR(kFake, &counted)
C10_REGISTER_GUARD_IMPL(PrivateUse1, c10::impl::FakeGuardImpl<kFake>)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return false; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t size) const override {
    at::native::resize_bytes_cpu(storage.unsafeGetStorageImpl(), size);
  }
};
Hooks hooks;
const bool hooked = [] {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

// The same memory, as the CPU's.
at::Tensor on_host(const at::Tensor& tensor) {
  if (!tensor.is_privateuseone()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &counted, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &counted, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt);
  if (format.has_value()) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  const auto bytes = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return at::native::set_storage_cpu_(self, std::move(storage), 0, {bytes}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return at::native::set_storage_cpu_(
      self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

at::Tensor convolution(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups) {
  std::optional<at::Tensor> own;
  if (bias.has_value() && bias->defined()) own = on_host(*bias);
  return at::convolution(
             on_host(input), on_host(weight), own, stride, padding, dilation, transposed, output_padding, groups)
      .to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> wanted) {
  const std::vector<int64_t> of_bias{gradient.size(1)};
  auto found = at::convolution_backward(
      on_host(gradient), on_host(input), on_host(weight), at::OptionalIntArrayRef(of_bias), stride, padding, dilation,
      transposed, output_padding, groups, wanted);
  auto there = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(input.device()) : tensor; };
  return {there(std::get<0>(found)), there(std::get<1>(found)), there(std::get<2>(found))};
}

int64_t attention_choice(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool,
    std::optional<double>, bool) {
  return 0;  // written out in products and a softmax
}

// As on a GPU: a number may lie on the CPU, and so may the indices of a tensor; nothing else.
void check(const c10::OperatorHandle& operation, const torch::jit::Stack& stack) {
  const auto& schema = operation.schema();
  const std::string& name = schema.name();
  const auto arguments = torch::jit::last(stack, schema.arguments().size());
  bool elsewhere = false, device = false;
  auto look = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (tensor.is_privateuseone()) device = true;
    else if (tensor.dim() > 0) elsewhere = true;
  };
  const bool indexes = name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
  for (std::size_t place = 0; place < arguments.size(); ++place) {
    const auto& value = arguments[place];
    if (value.isTensor()) look(value.toTensor());
    else if (value.isTensorList()) { for (const at::Tensor& each : value.toTensorVector()) look(each); }
    else if (value.isList() && !(indexes && place == 1 && arguments[0].toTensor().is_privateuseone())) {
      for (const c10::IValue& each : value.toListRef()) if (each.isTensor()) look(each.toTensor());
    } else if (value.isGenerator()) {
      TORCH_CHECK(value.toGenerator().device().type() == kFake, "Expected a 'fake' device type for generator but found 'cpu'");
    }
  }
  TORCH_CHECK(!(device && elsewhere), "Expected all tensors to be on the same device, but found at least two devices, fake:0 and cpu: ", name);
}

void computed_on_host(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  check(operation, *stack);
  at::native::cpu_fallback(operation, stack, /*error_on_views=*/true);
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &attention_choice)
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  m.impl("resize_", TORCH_FN(resize));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("set_.source_Storage", TORCH_FN(set_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&computed_on_host>());
}

TORCH_LIBRARY(faster_pruner_fake, m) {
  m.def("allocated() -> int", [] { return allocated.load(); });
  m.def("most() -> int", [] { return most.load(); });
  m.def("forget_most() -> ()", [] { most = allocated.load(); });
}
