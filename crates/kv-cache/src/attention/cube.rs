//! GPUs take the reference in tensor operations.

use burn_cubecl::CubeBackend;

use super::AttentionOps;

impl AttentionOps for CubeBackend {}
