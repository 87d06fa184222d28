//! CPU operations of Millgate: slices in, slices out.
