"""log p(x | y) and log p(x) as functions of a model: values, Hessian traces, Langevin steps."""
