//! The vector store in thirty lines: sentences in, the nearest one out, also under a condition.
//!
//! ```sh
//! cargo run --release --example vector_store
//! ```

use std::process::ExitCode;

use breakers_cli::{FetchBar, print, run};
use breakers_core::Embedder as _;
use breakers_embed::Bert;
use breakers_hub::{FetchOptions, Hub};
use breakers_retrieval::Metric;
use breakers_retrieval::store::{Config, Filter, Point, Query, Store};
use serde_json::json;

fn main() -> ExitCode {
    run(|| {
        let folder = Hub::new()?.resolve("minilm", &FetchOptions::from_env()?, &mut FetchBar::new())?.path;
        let bert = Bert::load(folder, &breakers_backend::device::open("flex")?)?;
        let notes = [
            ("Whales sing to each other over hundreds of kilometers.", "sea", 2021),
            ("The octopus changes its color when it dreams.", "sea", 2019),
            ("Bees tell each other by a dance where flowers are.", "air", 2021),
            ("Elephants call one another with sounds too low for us.", "land", 2020),
        ];
        let texts: Vec<&str> = notes.iter().map(|note| note.0).collect();
        let points = (1..).zip(bert.embed(&texts)?).zip(&notes).map(|((id, vector), (text, place, year))| {
            Point::new(id, vector).with_payload(json!({ "text": text, "place": place, "year": year }))
        });

        let store = Store::open("target/vector_store")?;
        let collection = store.create("notes", &Config::new(bert.dimension(), Metric::Cosine))?;
        collection.upsert(&points.collect::<std::result::Result<Vec<_>, _>>()?)?;

        let question = bert.embed(&["How do insects communicate?"])?.remove(0);
        let query = Query::new(question, 2).with_payload();
        let sea = query
            .clone()
            .filter(Filter::And(vec![Filter::eq("place", "sea"), Filter::within("year", 2020.0..=2025.0)]));
        for query in [&query, &sea] {
            print(&format!("{}\n", collection.explain(query)?))?;
            for hit in collection.search(query)? {
                print(&format!("{:.3}  {}\n", hit.distance, hit.payload.unwrap_or_default()["text"]))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
