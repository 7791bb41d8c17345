"""Fine-tune a pretrained model on a task: `deepspeed launch/finetune.py CONFIG [key=value ...]`, or as pretrain.py.

Starts fresh or goes on from the newest checkpoint of the run directory. The best checkpoint, by the task's first metric,
is exported to RUN_DIR/huggingface at the end. Exit codes: 0 done, 75 stopped on request with a checkpoint (run the same
command again), 1 an error, said in one message.
"""
