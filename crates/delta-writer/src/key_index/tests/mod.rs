//! The index as a whole: against a model, through crashes, with damaged files.

mod behaviour;
