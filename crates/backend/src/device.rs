//! Devices by name: `flex`, `wgpu`, `vulkan:1`, `cuda:0`.
//!
//! `cpu` is another name for `flex`. A name consists of a backend and, after a colon, the number of a device
//! in the order in which [`available`] lists them; without a number it means the first device. Burn itself
//! notices only at the first operation that a device does not exist, and panics; here a missing device is an
//! error that says what is missing.
//!
//! # Example
//! ```
//! use breakers_backend::device;
//!
//! let device = device::open("flex").unwrap();
//! assert!(device::is_cpu(&device));
//! for description in device::available() {
//!     println!("{}: {}", description.name, description.hardware);
//! }
//! println!("{}", device::open("warp-drive").unwrap_err());
//! ```

use crate::{Error, Result};
use burn::{
    backend::DispatchDevice,
    tensor::{DType, Device, DeviceType, Tensor},
};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::OnceLock,
};

/// A backend that our kernels run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Burn's own CPU backend; always there.
    Flex,
    /// WebGPU, on whichever graphics interface the machine offers.
    Wgpu,
    /// WebGPU on Vulkan, with SPIR-V shaders.
    Vulkan,
    /// WebGPU on Apple's Metal.
    Metal,
    /// NVIDIA CUDA.
    Cuda,
}

impl Kind {
    /// Every backend, whether or not this build has it.
    pub const ALL: [Self; 5] = [Self::Flex, Self::Wgpu, Self::Vulkan, Self::Metal, Self::Cuda];

    /// The name used in device names, which is also the name of the Cargo feature.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Wgpu => "wgpu",
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
        }
    }

    /// Whether this build contains the backend.
    pub const fn is_compiled(self) -> bool {
        match self {
            Self::Flex => true,
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Cuda => cfg!(feature = "cuda"),
        }
    }

    /// What a machine needs for the backend to find a device.
    const fn requirement(self) -> &'static str {
        match self {
            Self::Flex => "nothing",
            Self::Wgpu => {
                "a graphics driver for Vulkan, Metal or Direct3D 12 (Debian: libvulkan1 and, for a \
                 software device, mesa-vulkan-drivers)"
            }
            Self::Vulkan => {
                "a Vulkan loader and driver (Debian: libvulkan1 and the GPU's driver; \
                 mesa-vulkan-drivers brings a software device)"
            }
            Self::Metal => "macOS with a Metal device",
            Self::Cuda => "an NVIDIA GPU and its driver (libcuda)",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let name = if name.eq_ignore_ascii_case("cpu") { "flex" } else { name };
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// The devices that the machine has, in a fixed order. Queried once.
    fn enumerate(self) -> &'static [Device] {
        static DEVICES: [OnceLock<Vec<Device>>; Kind::ALL.len()] = [const { OnceLock::new() }; 5];
        DEVICES[self as usize].get_or_init(|| {
            let Some(device_type) = self.device_type() else { return Vec::new() };
            quietly(|| Device::enumerate(device_type).into_vec()).unwrap_or_else(|reason| {
                tracing::warn!("looking for {self} devices failed: {reason}");
                Vec::new()
            })
        })
    }

    fn device_type(self) -> Option<DeviceType> {
        match self {
            Self::Flex => Some(DeviceType::Flex),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(DeviceType::Wgpu),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => Some(DeviceType::Vulkan),
            #[cfg(feature = "metal")]
            Self::Metal => Some(DeviceType::Metal),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(DeviceType::Cuda),
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A device that this build can use on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceDescription {
    /// The name for [`open`].
    pub name: String,
    /// Its backend.
    pub kind: Kind,
    /// The hardware, in words.
    pub hardware: String,
}

/// Opens a device by name; see the module's documentation for the names. Case does not matter.
///
/// A GPU is initialized here, so that a broken driver is noticed right away.
///
/// # Errors
/// [`Error::UnknownDevice`], [`Error::DeviceIndex`] for an index that is not a number,
/// [`Error::DeviceNotCompiled`] if this build lacks the backend, [`Error::NoDevice`] if the machine has no
/// device of that kind, [`Error::DeviceOutOfRange`] if it has too few, [`Error::DeviceFailed`] if the driver
/// refuses.
pub fn open(name: &str) -> Result<Device> {
    let (kind, index) = parse(name)?;
    let devices = devices_of(kind)?;
    let device =
        devices.get(index).ok_or(Error::DeviceOutOfRange { kind, index, found: devices.len() })?.clone();
    if kind != Kind::Flex {
        quietly(|| device.sync().map_err(|error| error.to_string()))
            .and_then(|synced| synced)
            .map_err(|reason| Error::DeviceFailed { device: name.to_owned(), reason })?;
    }
    Ok(device)
}

/// Every device that this build can use on this machine, without initializing them.
pub fn available() -> Vec<DeviceDescription> {
    Kind::ALL.into_iter().flat_map(|kind| available_of(kind).unwrap_or_default()).collect()
}

/// The devices of one backend, without initializing them.
///
/// # Errors
/// [`Error::DeviceNotCompiled`] if this build lacks the backend, [`Error::NoDevice`] if the machine has no
/// device of that kind.
pub fn available_of(kind: Kind) -> Result<Vec<DeviceDescription>> {
    let describe = |(index, device)| DeviceDescription {
        name: if kind == Kind::Flex { kind.to_string() } else { format!("{kind}:{index}") },
        kind,
        hardware: hardware(device),
    };
    Ok(devices_of(kind)?.iter().enumerate().map(describe).collect())
}

/// The backend that a device belongs to; `None` if our kernels do not run there.
///
/// If another crate enables more backends in Burn, there may be devices without kernels of ours. An operation
/// on such a device would panic, so check devices that come from outside with [`require`].
pub fn kind(device: &Device) -> Option<Kind> {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => Some(Kind::Flex),
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => cube::kind(device),
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

/// As [`kind`], with an error for a device that our kernels do not run on.
///
/// # Errors
/// [`Error::UnsupportedDevice`].
pub fn require(device: &Device) -> Result<Kind> {
    kind(device).ok_or_else(|| Error::UnsupportedDevice { device: format!("{device:?}") })
}

/// Whether tensors of the device lie in the host's memory and its kernels are this crate's CPU kernels.
///
/// A graphics interface that is emulated on the CPU counts as a GPU.
pub fn is_cpu(device: &Device) -> bool {
    kind(device) == Some(Kind::Flex)
}

/// The largest buffer, in bytes, that a kernel on the device can read. There is no limit on the CPU.
///
/// The device is initialized, if it is not yet.
pub fn max_buffer_bytes(device: &Device) -> usize {
    match device.as_dispatch() {
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => {
            usize::try_from(device.client().properties().memory.max_page_size).unwrap_or(usize::MAX)
        }
        #[allow(unreachable_patterns)]
        _ => usize::MAX,
    }
}

fn parse(name: &str) -> Result<(Kind, usize)> {
    let (backend, index) = match name.trim().split_once(':') {
        Some((backend, index)) => (backend, Some(index)),
        None => (name.trim(), None),
    };
    let kind = Kind::parse(backend).ok_or_else(|| Error::UnknownDevice { name: name.to_owned() })?;
    let index = match index {
        None => 0,
        Some(text) => text
            .parse()
            .map_err(|_| Error::DeviceIndex { device: name.to_owned(), index: text.to_owned() })?,
    };
    Ok((kind, index))
}

/// A tensor's elements as `f32`, in row-major order; waits until the device has computed them.
///
/// # Errors
/// [`Error::Read`] if the device fails.
///
/// # Example
/// ```
/// use breakers_backend::device;
/// use burn::tensor::Tensor;
///
/// let device = device::open("flex").unwrap();
/// let tensor = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
/// assert_eq!(device::read(tensor.transpose()).unwrap(), [1.0, 3.0, 2.0, 4.0]);
/// ```
pub fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    if tensor.dims().contains(&0) {
        return Ok(Vec::new());
    }
    let data = tensor.cast(DType::F32).try_into_data();
    let data = data.map_err(|error| Error::Read { reason: error.to_string() })?;
    data.try_into_vec().map_err(|error| Error::Read { reason: format!("{error:?}") })
}

fn devices_of(kind: Kind) -> Result<&'static [Device]> {
    if !kind.is_compiled() {
        return Err(Error::DeviceNotCompiled { kind });
    }
    match kind.enumerate() {
        [] => Err(Error::NoDevice { kind, requirement: kind.requirement() }),
        devices => Ok(devices),
    }
}

fn hardware(device: &Device) -> String {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => format!("this machine's processor ({})", breakers_cpu::isa()),
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => cube::hardware(device),
        #[allow(unreachable_patterns)]
        other => format!("{other:?}"),
    }
}

/// Runs `f` and turns a panic into its message.
fn quietly<R>(f: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no reason given").to_owned()
    })
}

#[cfg(feature = "cube")]
mod cube {
    use super::Kind;
    use burn_cubecl::CubeDevice;
    use cubecl::device::{WgpuBackend, WgpuDeviceKind};

    pub(super) fn kind(device: &CubeDevice) -> Option<Kind> {
        match device {
            CubeDevice::Cuda(_) => Some(Kind::Cuda),
            CubeDevice::Wgpu(device) => Some(match device.backend {
                WgpuBackend::Vulkan => Kind::Vulkan,
                WgpuBackend::Metal => Kind::Metal,
                _ => Kind::Wgpu,
            }),
            _ => None,
        }
    }

    pub(super) fn hardware(device: &CubeDevice) -> String {
        match device {
            CubeDevice::Cuda(device) => format!("NVIDIA GPU {}", device.index),
            CubeDevice::Wgpu(device) => match device.kind {
                WgpuDeviceKind::DiscreteGpu(index) => format!("discrete GPU {index}"),
                WgpuDeviceKind::IntegratedGpu(index) => format!("integrated GPU {index}"),
                WgpuDeviceKind::VirtualGpu(index) => format!("virtual GPU {index}"),
                WgpuDeviceKind::Cpu => "software on this machine's processor".to_owned(),
                ref other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Tensor, Tolerance};

    #[test]
    fn names_and_numbers() {
        let check =
            |name: &str, expected: Result<(Kind, usize)>| assert_eq!(parse(name), expected, "{name:?}");
        check("flex", Ok((Kind::Flex, 0)));
        check(" Vulkan:1 ", Ok((Kind::Vulkan, 1)));
        check("CUDA:0", Ok((Kind::Cuda, 0)));
        for name in ["", ":", ":0", "gpu", "cuda0", "flex 0", "vulkan,0"] {
            check(name, Err(Error::UnknownDevice { name: name.to_owned() }));
        }
        for index in ["", "-1", "one", "0:1", "99999999999999999999"] {
            let device = format!("cuda:{index}");
            check(&device, Err(Error::DeviceIndex { device: device.clone(), index: index.to_owned() }));
        }
    }

    #[test]
    fn flex_is_always_there() {
        let device = open("flex:0").unwrap();
        assert_eq!(kind(&device), Some(Kind::Flex));
        assert_eq!(require(&device), Ok(Kind::Flex));
        assert!(is_cpu(&device));
        assert_eq!(open("flex:1"), Err(Error::DeviceOutOfRange { kind: Kind::Flex, index: 1, found: 1 }));
        assert_eq!(available()[0].name, "flex");
    }

    #[test]
    fn a_backend_that_the_build_lacks_names_its_feature() {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_compiled()) {
            let error = open(kind.name()).unwrap_err();
            assert_eq!(error, Error::DeviceNotCompiled { kind });
            assert!(error.to_string().contains(&format!("--features {kind}")), "{error}");
        }
    }

    #[test]
    fn a_missing_device_names_what_it_needs() {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_compiled()) {
            match available_of(kind) {
                Ok(devices) => {
                    assert!(!devices.is_empty());
                    let index = devices.len();
                    let error = open(&format!("{kind}:{index}"));
                    assert_eq!(error, Err(Error::DeviceOutOfRange { kind, index, found: index }));
                }
                Err(error) => {
                    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
                    assert!(error.to_string().contains(kind.requirement()), "{error}");
                }
            }
        }
    }

    #[test]
    fn every_listed_device_computes() {
        for description in available() {
            let device = open(&description.name).unwrap();
            assert_eq!(kind(&device), Some(description.kind));
            assert_eq!(is_cpu(&device), description.kind == Kind::Flex);
            // What WebGPU guarantees.
            assert!(max_buffer_bytes(&device) >= 128 << 20, "{}", max_buffer_bytes(&device));
            let sum = Tensor::<1>::from_floats([1.0, 2.0], &device)
                + Tensor::<1>::from_floats([0.5, 0.25], &device);
            sum.into_data().assert_approx_eq::<f32>(&[1.5f32, 2.25].into(), Tolerance::default());
        }
    }

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(quietly(|| 1), Ok(1));
        assert_eq!(quietly(|| panic!("no {}", "driver")), Err::<(), _>("no driver".to_owned()));
        assert_eq!(quietly(|| std::panic::panic_any(7)), Err::<(), _>("no reason given".to_owned()));
    }
}
