//! A server on a free port, called as clients call it.

mod access;
mod answers;
mod cancelling;
mod contract;
mod operation;
mod requests;
mod support;
mod vectors;
