//! Any body of a request to the server is a request that it may run, or an error that names what is wrong.

#![no_main]

use breakers_serve::testing::{read_completion, read_embedding, read_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let is_error = |text: &str| text.starts_with("{\"error\":{\"message\":\"");
    for is_chat in [true, false] {
        match read_completion(is_chat, body) {
            Ok(requests) => {
                assert!(!requests.is_empty());
                for request in requests {
                    request.sampling.validate().expect("settings in their ranges");
                    assert!(request.stop.iter().all(|stop| !stop.is_empty()));
                    assert_ne!(request.max_tokens, Some(0));
                }
            }
            Err(error) => assert!(is_error(&error), "{error}"),
        }
    }
    if let Err(error) = read_response(body) {
        assert!(is_error(&error), "{error}");
    }
    if let Err(error) = read_embedding(body) {
        assert!(is_error(&error), "{error}");
    }
});
