"""The frameworks that people train with; each module here imports its framework.

    codedgrad.integrations.lightning    Trainer(strategy=CodedStrategy())
    codedgrad.integrations.huggingface  CodedTrainer, a transformers.Trainer
    codedgrad.integrations.accelerate   for a loop of your own with an Accelerator
    codedgrad.integrations.ddp          a communication hook; short `codedgrad.ddp`

All but the last hand over the framework's own training step as the function that can be
run again for another worker's shard. That is what makes back-ups possible.
"""
