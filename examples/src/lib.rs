//! Shared flags
