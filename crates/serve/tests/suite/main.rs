//! A server on a free port, called as clients call it.

mod access;
mod answers;
mod batch_kills;
mod batches;
mod cancelling;
mod contract;
mod contract_routes;
mod jobs;
mod operation;
mod registry;
mod registry_crashes;
mod registry_files;
mod registry_swaps;
mod requests;
mod responses;
mod shelf;
mod support;
mod upstreams;
mod upstreams_load;
mod vectors;
