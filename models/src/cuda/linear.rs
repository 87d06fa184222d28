//! Matrices on the device and their products with rows of activations.

use millgate_kernels::cuda::{
    Activation, Buffer, CudaError, Gpu, MAX_QUANTISED_ROWS, MatMul, QuantisedMatrix, QuantisedRows, View, ViewMut,
    add_bias, dequantise, matmul, quantised_linear,
};

/// `y = x · wᵀ + bias`, where `w` is one matrix or several below one another.
pub(super) struct Linear<T> {
    pub(super) parts: Vec<Part<T>>,
    pub(super) bias: Option<Buffer<T>>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// Some rows of the weights.
pub(super) enum Part<T> {
    /// `[outputs, inputs]`.
    Plain(Buffer<T>),
    /// As they lie in a GGUF file.
    Quantised(QuantisedMatrix),
}

/// Memory that products with quantised weights need while they run.
pub(super) struct Scratch<T> {
    quantised: Option<(QuantisedRows, Buffer<T>)>,
}

impl<T: Activation> Linear<T> {
    /// Queues the product of every row of `x`.
    ///
    /// # Shapes
    /// `x`: `[rows, inputs]`, `y`: `[rows, outputs]`.
    pub(super) fn forward(
        &self,
        gpu: &Gpu,
        x: View<'_, T>,
        scratch: &mut Scratch<T>,
        mut y: ViewMut<'_, T>,
    ) -> Result<(), CudaError> {
        let rows = x.len() / self.inputs;
        let is_quantised = self.parts.iter().any(|part| matches!(part, Part::Quantised(_)));
        let is_narrow = rows <= MAX_QUANTISED_ROWS;
        if let Some((codes, _)) = scratch.quantised.as_mut().filter(|_| is_quantised && is_narrow) {
            codes.fill(gpu, x, (rows, self.inputs, self.inputs))?;
        }
        let mut first = 0;
        for part in &self.parts {
            let outputs = part.outputs(self.inputs);
            let shape = MatMul { rows, inputs: self.inputs, outputs, x_stride: self.inputs, y_stride: self.outputs };
            let y = y.slice_mut(first.min(y.len())..);
            match (part, &mut scratch.quantised) {
                (Part::Plain(weight), _) => matmul(gpu, x, weight.view(), y, shape)?,
                (Part::Quantised(weight), Some((codes, _))) if is_narrow => {
                    quantised_linear(gpu, codes, weight, y, self.outputs)?;
                }
                (Part::Quantised(weight), Some((_, plain))) => {
                    let len = weight.outputs() * weight.inputs();
                    dequantise(gpu, weight, plain.slice_mut(..len))?;
                    matmul(gpu, x, plain.slice(..len), y, shape)?;
                }
                (Part::Quantised(_), None) => unreachable!("scratch is made for all weights"),
            }
            first += outputs;
        }
        match &self.bias {
            Some(bias) => add_bias(gpu, bias.view(), y),
            None => Ok(()),
        }
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, Buffer::len) * size_of::<T>();
        bias + self.parts.iter().map(Part::bytes).sum::<usize>()
    }
}

impl<T: Activation> Part<T> {
    fn outputs(&self, inputs: usize) -> usize {
        match self {
            Self::Plain(weight) => weight.len() / inputs,
            Self::Quantised(weight) => weight.outputs(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(weight) => weight.len() * size_of::<T>(),
            Self::Quantised(weight) => weight.format().bytes_for(weight.outputs(), weight.inputs()).unwrap_or(0),
        }
    }
}

impl<T: Activation> Scratch<T> {
    /// For all of these products.
    pub(super) fn new<'a>(gpu: &Gpu, linears: impl Iterator<Item = &'a Linear<T>>) -> Result<Self, CudaError>
    where
        T: 'a,
    {
        let matrices = linears.flat_map(|linear| &linear.parts).filter_map(|part| match part {
            Part::Plain(_) => None,
            Part::Quantised(weight) => Some((weight.inputs(), weight.outputs() * weight.inputs())),
        });
        let largest = matrices.fold((0, 0), |(width, len), (w, l): (usize, usize)| (width.max(w), len.max(l)));
        let quantised = match largest {
            (0, _) => None,
            (width, len) => Some((QuantisedRows::new(gpu, width)?, gpu.alloc(len)?)),
        };
        Ok(Self { quantised })
    }
}
