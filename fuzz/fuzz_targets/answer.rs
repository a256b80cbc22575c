//! Any bytes of an endpoint are an answer or a typed error, and the same however they are split.

#![no_main]

use std::io::Read;
use std::ops::ControlFlow;

use breakers_core::{ChatRequest, Message};
use breakers_remote::testing::read_answer;
use libfuzzer_sys::fuzz_target;

/// Hands out so many bytes a read.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.1.min(self.0.len()).min(buffer.len());
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let request = ChatRequest::new(Message::user("?")).with_logprobs(2);
    for is_stream in [true, false] {
        let answers = [usize::MAX, 1].map(|size| {
            let mut deltas = Vec::new();
            let reply = read_answer(&request, is_stream, Dribble(bytes, size), &mut |delta| {
                deltas.push(delta);
                ControlFlow::Continue(())
            });
            let reply = reply.map(|mut reply| {
                reply.timings = Default::default();
                reply
            });
            format!("{reply:?} {deltas:?}")
        });
        assert_eq!(answers[0], answers[1]);
    }
});
