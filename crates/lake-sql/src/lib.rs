//! DataFusion over the lake: VERSION AS OF, history, live rows.
