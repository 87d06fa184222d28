//! Where a model computes: what may be asked for, and what this machine has.

use std::fmt;
use std::str::FromStr;

/// Where the user wants a model to compute: `auto`, `cpu` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// On the first GPU that can be used, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On this NVIDIA GPU and nowhere else.
    Cuda(usize),
}

/// Where a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// On the CPU.
    #[default]
    Cpu,
    /// On this NVIDIA GPU.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no device; write auto, cpu or cuda:0")]
pub struct DeviceTextError {
    text: String,
}

/// Why a device that was asked for cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device `{device}` cannot be used: {reason}")]
pub struct DeviceError {
    device: Device,
    reason: String,
}

/// The answer to a [`DeviceChoice`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenDevice {
    /// Where to compute.
    pub device: Device,
    /// Name and memory of a GPU.
    pub description: Option<String>,
    /// Why `auto` came to the CPU, where the program could have used a GPU.
    pub why_cpu: Option<String>,
}

impl ChosenDevice {
    /// Memory of the GPU that a model may take, in bytes: what nobody has, but for a share that stays free. `None` for the
    /// CPU.
    ///
    /// # Errors
    /// [`DeviceError`] when the driver cannot say.
    pub fn room_bytes(&self) -> Result<Option<u64>, DeviceError> {
        match self.device {
            Device::Cpu => Ok(None),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => match crate::cuda::room_bytes(ordinal) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) => Err(DeviceError { device: self.device, reason: error.to_string() }),
            },
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Ok(None),
        }
    }
}

impl DeviceChoice {
    /// Looks at what this machine has.
    ///
    /// # Errors
    /// [`DeviceError`] when a GPU was named that is not there or cannot be used.
    pub fn choose(self) -> Result<ChosenDevice, DeviceError> {
        let cpu = |why_cpu| ChosenDevice { device: Device::Cpu, description: None, why_cpu };
        match self {
            Self::Cpu => Ok(cpu(None)),
            Self::Auto if !cfg!(feature = "cuda") => Ok(cpu(None)),
            Self::Auto => Ok(look(None).unwrap_or_else(|why| cpu(Some(why)))),
            Self::Cuda(ordinal) => {
                look(Some(ordinal)).map_err(|reason| DeviceError { device: Device::Cuda(ordinal), reason })
            }
        }
    }
}

/// Finds the GPU of a number, or the first usable one.
#[cfg(feature = "cuda")]
fn look(ordinal: Option<usize>) -> Result<ChosenDevice, String> {
    use millgate_kernels::cuda::{CudaError, DeviceInfo, devices};
    let devices = devices().map_err(|error| error.to_string())?;
    let count = devices.len();
    let usable = |info: &DeviceInfo| match info.capability {
        capability if capability < (8, 0) => {
            Err(CudaError::Capability { name: info.name.clone(), capability }.to_string())
        }
        _ => Ok(()),
    };
    let found = match ordinal {
        Some(ordinal) => devices.into_iter().find(|info| info.ordinal == ordinal),
        None => devices.iter().find(|info| usable(info).is_ok()).or(devices.first()).cloned(),
    };
    let info = found.ok_or_else(|| CudaError::NoDevice { ordinal: ordinal.unwrap_or_default(), count }.to_string())?;
    usable(&info)?;
    let memory = indicatif::BinaryBytes(info.total_bytes as u64);
    Ok(ChosenDevice {
        device: Device::Cuda(info.ordinal),
        description: Some(format!("{}, {memory}", info.name)),
        why_cpu: None,
    })
}

#[cfg(not(feature = "cuda"))]
fn look(_: Option<usize>) -> Result<ChosenDevice, String> {
    Err("this build of the program has no GPU support; use one that was built with the feature `cuda`".to_owned())
}

impl FromStr for DeviceChoice {
    type Err = DeviceTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The number as it is written back, so that a device has one name.
        let number = |text: &str| {
            let digits = text.strip_prefix("cuda:")?;
            digits.parse().ok().filter(|number: &usize| number.to_string() == digits)
        };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => number(text).map(Self::Cuda).ok_or_else(|| DeviceTextError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => Device::Cpu.fmt(formatter),
            Self::Cuda(ordinal) => Device::Cuda(*ordinal).fmt(formatter),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(ordinal) => write!(formatter, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+0", "cuda:00", "CUDA:0", "cpu:0"] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert_eq!(error, format!("`{text}` is no device; write auto, cpu or cuda:0"));
        }
    }

    #[test]
    fn the_cpu_can_always_be_chosen() {
        assert_eq!(DeviceChoice::Cpu.choose().unwrap().device, Device::Cpu);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_gpu_support_says_so_when_one_is_asked_for_and_is_silent_otherwise() {
        assert_eq!(DeviceChoice::Auto.choose().unwrap().why_cpu, None);
        let error = DeviceChoice::Cuda(1).choose().unwrap_err().to_string();
        assert!(error.starts_with("device `cuda:1` cannot be used: this build"), "{error}");
    }
}
