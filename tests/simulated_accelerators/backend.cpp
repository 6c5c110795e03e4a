// Registers several simulated accelerators, "sim:0", "sim:1", ..., as PyTorch's PrivateUse1 device type.
// Their memory is host memory and their kernels are the CPU's; what they add is a refusal of operands
// that lie on different devices. They know nothing of streams, of memory limits or of fast arithmetic.
//
// One idea carries the file. A tensor on "sim:1" and a CPU tensor can share their bytes and differ in
// the device that they name. So one fallback serves every operator: it compares the operands' devices,
// lends the CPU kernel CPU tensors over the same bytes ("twins"), and hands the kernel's results back
// under the accelerator's name. Nothing is copied, so views and writes in place behave as they should.

#include <ATen/CPUFunctions.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::IValue;
using c10::Storage;

constexpr auto kSim = c10::DeviceType::PrivateUse1;

DeviceIndex device_count = 4;  // set once by load(), before any tensor exists
thread_local DeviceIndex current_device = 0;  // autograd works with one thread for each device
std::atomic<int64_t> bytes_between_devices{0};

bool is_simulated(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kSim;
}

// "sim" without an index means the current device, as "cuda" does.
Device with_index(Device device) {
  return device.has_index() ? device : Device(kSim, current_device);
}

[[noreturn]] void refuse_two_devices(Device first, Device second, const c10::FunctionSchema& schema,
                                     size_t argument) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ",
              first, " and ", second, "! (when checking argument for argument ",
              schema.arguments()[argument].name(), " in method ", schema.name(), ")");
}

// ---- What PyTorch asks of a device type: a current device, memory, and a way to be found ----

class CurrentDevice final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kSim; }
  DeviceIndex deviceCount() const noexcept override { return device_count; }

  Device getDevice() const override { return Device(kSim, current_device); }
  Device exchangeDevice(Device device) const override {
    const Device previous = getDevice();
    setDevice(device);
    return previous;
  }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.type() == kSim && device.index() >= 0 && device.index() < device_count,
                "invalid device ordinal: ", device, " is not among the ", int(device_count),
                " simulated accelerators");
    current_device = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }

  // Kernels run at once, so a device has one stream and every event has already happened. The autograd
  // engine asks for these where a gradient crosses from one device to another.
  c10::Stream getStream(Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  void record(void**, const c10::Stream&, DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  void synchronizeDevice(DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, CurrentDevice)

// Host memory that carries the name of the device that was current when it was asked for.
class Memory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, Device(kSim, current_device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;

// How torch.accelerator, and with it "device 1" as a bare number, finds the devices.
class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return device_count; }
  DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(DeviceIndex index) const override { CurrentDevice().setDevice(Device(kSim, index)); }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    return CurrentDevice().exchangeDevice(Device(kSim, index)).index();
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
};

// ---- Twins: the same bytes under another device's name ----

// The bytes of `storage` as memory of `device`. `storage` lives at least as long as the result.
c10::DataPtr bytes_of(const Storage& storage, Device device) {
  auto* owner = new Storage(storage);
  return {storage.mutable_data(), owner, [](void* kept) { delete static_cast<Storage*>(kept); }, device};
}

// Everything that says how a tensor reads its bytes.
void copy_geometry(const Tensor& from, const Tensor& to) {
  to.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
  to._set_conj(from.is_conj());
  to._set_neg(from.is_neg());
}

// The twins made for one operator call. It remembers them, because a kernel may return a part of an
// argument, and one with `out=` may resize an argument: both have to come out with the caller's own
// storage. (PyTorch itself sees to it that a write in place returns the very tensor that was written.)
// A call has few tensors, so plain lists are searched from the front.
class Twins {
 public:
  // The CPU twin of a simulated tensor; any other tensor is returned as it is.
  Tensor on_host(const Tensor& tensor) {
    if (!is_simulated(tensor)) return tensor;
    for (const auto& known : tensors_)
      if (known.simulated.is_same(tensor)) return known.host;
    Tensor host = at::detail::make_tensor<c10::TensorImpl>(
        Storage(host_storage(tensor)), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    copy_geometry(tensor, host);
    tensors_.push_back({tensor, host});
    return host;
  }

  // A kernel's result as a tensor of `device`.
  Tensor on_device(const Tensor& host, Device device) {
    if (!host.defined()) return host;
    Tensor simulated = part_of_an_argument(host);
    if (!simulated.defined()) {
      Storage storage(Storage::use_byte_size_t{}, host.storage().nbytes(), bytes_of(host.storage(), device),
                      &memory, /*resizable=*/true);
      simulated = at::detail::make_tensor<c10::TensorImpl>(
          std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), host.dtype());
    }
    copy_geometry(host, simulated);
    return simulated;
  }

  // Gives the caller's tensors the shapes, and where a kernel had to allocate, the memory, of their twins.
  void adopt_changes() {
    for (const auto& [simulated, host] : tensors_) {
      auto* storage = simulated.storage().unsafeGetStorageImpl();
      if (host.storage().data() != storage->data()) {
        storage->set_data_ptr(bytes_of(host.storage(), simulated.device()));
        storage->set_nbytes(host.storage().nbytes());
      }
      // Only where it changed: PyTorch forbids even an equal one on the result of detach().
      if (simulated.sizes() != host.sizes() || simulated.strides() != host.strides()) {
        copy_geometry(host, simulated);
      }
    }
  }

 private:
  struct TensorPair {
    Tensor simulated, host;
  };
  struct StoragePair {
    Storage simulated, host;
    c10::DispatchKeySet keys;  // of the simulated tensor that brought the storage into the call
  };

  const Storage& host_storage(const Tensor& tensor) {
    const Storage& simulated = tensor.storage();
    for (const auto& known : storages_)
      if (known.simulated.is_alias_of(simulated)) return known.host;
    Storage host(Storage::use_byte_size_t{}, simulated.nbytes(), bytes_of(simulated, Device(c10::kCPU)),
                 c10::GetCPUAllocator(), /*resizable=*/true);
    storages_.push_back({simulated, std::move(host), tensor.key_set()});
    return storages_.back().host;
  }

  // A view is built with the keys of the tensor that it views, as PyTorch's own view operators build it:
  // under torch.inference_mode() these keys say whether autograd may follow the view.
  Tensor part_of_an_argument(const Tensor& host) {
    for (const auto& known : storages_)
      if (known.host.is_alias_of(host.storage()))
        return at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, Storage(known.simulated),
                                                        known.keys, host.dtype());
    return Tensor();
  }

  std::vector<TensorPair> tensors_;
  std::vector<StoragePair> storages_;
};

// ---- The fallback: every operator that has no kernel of its own below ----

// Calls `visit(tensor)` for each tensor in an argument, which may be one tensor or a list of them.
template <class Visit>
void for_each_tensor(const IValue& value, const Visit& visit) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
      if (tensor && tensor->defined()) visit(*tensor);
  }
}

// An argument or result with `replace(tensor)` in the place of each of its tensors.
template <class Replace>
IValue with_tensors_replaced(const IValue& value, const Replace& replace) {
  if (value.isTensor()) return replace(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> replaced;
    for (const Tensor& tensor : value.toTensorVector()) replaced.push_back(replace(tensor));
    return replaced;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> replaced;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
      replaced.push_back(tensor ? std::optional<Tensor>(replace(*tensor)) : std::nullopt);
    return replaced;
  }
  return value;
}

// The device that a call runs on: that of its first simulated tensor, or for an operator that makes a
// tensor from nothing, the one that it names.
Device device_of_call(c10::ArrayRef<IValue> arguments) {
  std::optional<Device> found;
  for (const IValue& value : arguments)
    for_each_tensor(value, [&](const Tensor& tensor) {
      if (!found && is_simulated(tensor)) found = tensor.device();
    });
  for (const IValue& value : arguments)
    if (!found && value.isDevice() && value.toDevice().type() == kSim) found = with_index(value.toDevice());
  return found.value_or(Device(kSim, current_device));
}

// Raises unless all operands may meet on `device`. As on CUDA there are two exceptions: a CPU tensor without
// dimensions may be read, since its one value travels with the kernel launch, and x[indices] takes indices
// from the CPU and copies them over. (CUDA grants the first only to elementwise operators; here all have it.)
void check_operands(const c10::FunctionSchema& schema, c10::ArrayRef<IValue> arguments, Device device) {
  // Of x[indices] alone, PyTorch has fetched the indices before, and they were counted then.
  const bool is_indexed_write = schema.name() == "aten::_index_put_impl_";
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto* alias = schema.arguments()[i].alias_info();
    const bool is_written = alias != nullptr && alias->isWrite();
    const bool is_index = arguments[i].isOptionalTensorList();
    for_each_tensor(arguments[i], [&](const Tensor& tensor) {
      if (tensor.device() == device) return;
      if (tensor.is_cpu() && is_index) {
        if (is_indexed_write) bytes_between_devices += tensor.nbytes();
        return;
      }
      if (tensor.is_cpu() && tensor.dim() == 0 && !is_written) return;
      refuse_two_devices(device, tensor.device(), schema, i);
    });
    if (arguments[i].isGenerator()) {
      const Device generator = arguments[i].toGenerator().device();
      TORCH_CHECK(generator.type() == kSim, "Expected a '", Device(kSim),
                  "' device type for generator but found '", generator, "'");
    }
  }
}

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  const Device device = device_of_call(torch::jit::last(*stack, count));
  check_operands(schema, torch::jit::last(*stack, count), device);

  Twins twins;
  for (auto value = stack->end() - count; value != stack->end(); ++value) {
    *value = with_tensors_replaced(*value, [&](const Tensor& tensor) { return twins.on_host(tensor); });
    if (value->isDevice()) *value = Device(c10::kCPU);
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  twins.adopt_changes();
  for (auto value = stack->end() - schema.returns().size(); value != stack->end(); ++value) {
    *value = with_tensors_replaced(
        *value, [&](const Tensor& tensor) { return twins.on_device(tensor, device); });
  }
}

// ---- Kernels of its own: making tensors, crossing devices, changing a tensor's storage ----

Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(with_index(device.value_or(Device(kSim))));
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory,
                                   c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                     std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard guard(with_index(device.value_or(Device(kSim))));
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                           &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

// The one way from device to device, and so the place to count: copy_, .to() and .cpu() all end here.
// PyTorch converts to the destination's dtype before it sends, hence the destination's size.
Tensor copy_from(const Tensor& source, const Tensor& destination, bool /*non_blocking*/) {
  if (source.device() != destination.device()) bytes_between_devices += destination.nbytes();
  Twins twins;
  twins.on_host(destination).copy_(twins.on_host(source));
  return destination;
}

// tensor.item(): one element travels to the host.
at::Scalar read_element(const Tensor& tensor) {
  bytes_between_devices += tensor.itemsize();
  Twins twins;
  return at::cpu::_local_scalar_dense(twins.on_host(tensor));
}

// Storages are no tensors, so the fallback cannot lend them to a CPU kernel; torch.load and deepcopy need
// them. PyTorch's own functions do the work: they raise where the storage lies on another device.
Tensor& set_to_part_of_storage(Tensor& tensor, Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                               c10::SymIntArrayRef stride) {
  return at::cpu::set_(tensor, std::move(source), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size),
                       C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor& set_to_storage(Tensor& tensor, Storage source) { return at::cpu::set_(tensor, std::move(source)); }
Tensor& set_to_tensor(Tensor& tensor, const Tensor& source) { return at::cpu::set_(tensor, source); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_copy_from", copy_from);
  library.impl("_local_scalar_dense", read_element);
  library.impl("set_.source_Storage_storage_offset", set_to_part_of_storage);
  library.impl("set_.source_Storage", set_to_storage);
  library.impl("set_.source_Tensor", set_to_tensor);
}

// Twins stay conjugated or negated where their tensors are. Otherwise PyTorch would resolve that first, by
// a copy, which would have to resolve it first, until the stack is full.
TORCH_LIBRARY_IMPL(aten, Conjugate, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, library) {
  library.impl("_copy_from", torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

// ---- For __init__.py ----

void set_device_count(int64_t count) { device_count = static_cast<DeviceIndex>(count); }
int64_t copied_bytes() { return bytes_between_devices; }
void reset_copied_bytes() { bytes_between_devices = 0; }

TORCH_LIBRARY(simulated_accelerators, library) {
  library.def("set_device_count(int count) -> ()", set_device_count);
  library.def("copied_bytes() -> int", copied_bytes);
  library.def("reset_copied_bytes() -> ()", reset_copied_bytes);
}

const bool is_registered = [] {
  c10::SetAllocator(kSim, &memory);
  at::RegisterPrivateUse1HooksInterface(new Hooks());  // PyTorch keeps it until the process ends
  return true;
}();

}  // namespace
