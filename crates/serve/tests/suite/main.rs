//! A server on a free port, called as clients call it.

mod access;
mod answers;
mod cancelling;
mod contract;
mod operation;
mod requests;
mod responses;
mod support;
mod vectors;
