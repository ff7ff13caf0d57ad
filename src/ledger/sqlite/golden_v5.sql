-- SPDX-License-Identifier: Apache-2.0
-- A ledger of format version 5, as text: schema_test.cc makes it a file and reads it. It is never changed: a later version adds
-- another one beside it.
BEGIN TRANSACTION;
CREATE TABLE checkpoint(
  consumer INTEGER NOT NULL, timeline INTEGER NOT NULL, step INTEGER NOT NULL, abandoned INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, timeline, step)) STRICT, WITHOUT ROWID;
INSERT INTO checkpoint VALUES(1,1,1,0);
INSERT INTO checkpoint VALUES(1,1,3,1);
INSERT INTO checkpoint VALUES(2,1,3,0);
INSERT INTO checkpoint VALUES(2,1,4,0);
CREATE TABLE consumer(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, window_size INTEGER NOT NULL, resumable_checkpoints INTEGER NOT NULL,
  tail INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL DEFAULT 1,
  next_row INTEGER NOT NULL, available INTEGER NOT NULL DEFAULT 0,
  windows INTEGER NOT NULL DEFAULT 0, trained_windows INTEGER NOT NULL DEFAULT 0,
  durable_windows INTEGER NOT NULL DEFAULT 0, released_windows INTEGER NOT NULL DEFAULT 0,
  timeline INTEGER NOT NULL DEFAULT 0, width INTEGER NOT NULL DEFAULT 1,
  trained_step INTEGER NOT NULL DEFAULT 0, durable_step INTEGER NOT NULL DEFAULT 0,
  failed_trained INTEGER NOT NULL DEFAULT 0, failed_durable INTEGER NOT NULL DEFAULT 0,
  dropped INTEGER NOT NULL DEFAULT 0, kind INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0, acked INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0, passes INTEGER NOT NULL DEFAULT 1, pass_windows INTEGER NOT NULL DEFAULT 0, max_window_tokens INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO consumer VALUES(1,'train',2,1,0,1,5,3,2,1,1,1,2,1,1,1,0,1,1,0,0,0,0,0,1,0,0);
INSERT INTO consumer VALUES(2,'small',1,2,1,1,4,4,4,4,4,3,1,1,4,4,0,0,0,0,0,0,0,0,1,0,0);
INSERT INTO consumer VALUES(3,'gone',3,1,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,1,0,0);
INSERT INTO consumer VALUES(4,'queue',0,1,0,1,0,2,0,0,0,0,0,1,0,0,0,0,0,1,3,1,1,1,1,0,0);
INSERT INTO consumer VALUES(5,'twice',2,1,1,1,7,1,2,1,0,0,1,1,1,0,1,0,0,0,3,0,0,0,2,0,0);
INSERT INTO consumer VALUES(6,'capped',8,1,0,1,5,3,1,0,0,0,1,2,0,0,0,0,0,0,3,0,0,0,1,0,25);
CREATE TABLE dropped(
  consumer INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (consumer, row)) STRICT, WITHOUT ROWID;
INSERT INTO dropped VALUES(1,2,'rewound');
CREATE TABLE fact(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO fact VALUES('kind','online');
INSERT INTO fact VALUES('run_id','run');
CREATE TABLE prompt(
  row INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, state INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, expiries INTEGER NOT NULL DEFAULT 0,
  holder TEXT, token TEXT, expires_ms INTEGER, ended_token TEXT, reason TEXT) STRICT;
INSERT INTO prompt VALUES(0,'p0',3,1,0,NULL,NULL,NULL,'9c3f98db04959c7c4550c1e64c8c8632','too long');
INSERT INTO prompt VALUES(1,'p1',2,0,0,NULL,NULL,NULL,'d0d0ceff6ca87c05da25de11602d6a47',NULL);
INSERT INTO prompt VALUES(2,'p2',2,0,0,NULL,NULL,NULL,'44563b503e6fa36c4b71da39f4db3500',NULL);
INSERT INTO prompt VALUES(3,'p3',2,0,0,NULL,NULL,NULL,'2a1dad5f9b8c37912d0c26b85a9a593a',NULL);
INSERT INTO prompt VALUES(4,'p4',2,0,0,NULL,NULL,NULL,'2691c60beca85489c25c8f98802f3680',NULL);
INSERT INTO prompt VALUES(5,'p5',2,0,0,NULL,NULL,NULL,'76d4693495548b7bc3c056fb6e655dc6',NULL);
INSERT INTO prompt VALUES(6,'p6',2,0,0,NULL,NULL,NULL,'dde7b6e6111ea87bab8288e6372166ae',NULL);
INSERT INTO prompt VALUES(7,'p7',2,0,0,NULL,NULL,NULL,'dd85e19266ebea073968f81f853da2f0',NULL);
INSERT INTO prompt VALUES(8,'p8',2,0,0,NULL,NULL,NULL,'f7bbf6a258f25b7992e9a7c7dcc3fcfc',NULL);
INSERT INTO prompt VALUES(9,'p9',0,0,0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE prompt_task(row INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;
INSERT INTO prompt_task VALUES(0,'{"task_id":"p0","run_id":"run","source_id":"story:p0","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(1,'{"task_id":"p1","run_id":"run","source_id":"story:p1","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(2,'{"task_id":"p2","run_id":"run","source_id":"story:p2","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(3,'{"task_id":"p3","run_id":"run","source_id":"story:p3","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(4,'{"task_id":"p4","run_id":"run","source_id":"story:p4","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(5,'{"task_id":"p5","run_id":"run","source_id":"story:p5","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(6,'{"task_id":"p6","run_id":"run","source_id":"story:p6","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(7,'{"task_id":"p7","run_id":"run","source_id":"story:p7","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(8,'{"task_id":"p8","run_id":"run","source_id":"story:p8","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
INSERT INTO prompt_task VALUES(9,'{"task_id":"p9","run_id":"run","source_id":"story:p9","payload":{"text":"once upon"},"max_length":0,"chat_template":"","loss_mask_policy":"all","target_model_version":"unknown","draft_weight_version":null,"attempt":0,"metadata":{}}');
CREATE TABLE queue_ref(
  consumer INTEGER NOT NULL, row INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0, shard INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, holder TEXT, token TEXT, expires_ms INTEGER, ended_token TEXT, reason TEXT,
  PRIMARY KEY (row, consumer)) STRICT, WITHOUT ROWID;
INSERT INTO queue_ref VALUES(4,3,2,5635477035937193570,0,NULL,NULL,NULL,'t1',NULL);
INSERT INTO queue_ref VALUES(4,4,1,4796902257272060978,1,'c1','9f97380876f81547ed261291696377ff',55218944,NULL,NULL);
INSERT INTO queue_ref VALUES(4,5,3,4819898767044577262,3,NULL,NULL,NULL,'t3','unreadable');
INSERT INTO queue_ref VALUES(4,6,0,772635895129532061,0,NULL,NULL,NULL,NULL,NULL);
INSERT INTO queue_ref VALUES(4,7,0,1312522715686598576,0,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE queue_width(n INTEGER PRIMARY KEY) STRICT;
CREATE TABLE run(
  id INTEGER PRIMARY KEY CHECK (id = 1), ledger_id TEXT NOT NULL, boot_id TEXT NOT NULL,
  prompts_closed INTEGER NOT NULL DEFAULT 0,
  prompts INTEGER NOT NULL DEFAULT 0, prompts_pending INTEGER NOT NULL DEFAULT 0, prompts_leased INTEGER NOT NULL DEFAULT 0,
  prompts_done INTEGER NOT NULL DEFAULT 0, prompts_failed INTEGER NOT NULL DEFAULT 0,
  committed INTEGER NOT NULL DEFAULT 0, committed_tokens INTEGER NOT NULL DEFAULT 0,
  resident_bytes INTEGER NOT NULL DEFAULT 0, freed INTEGER NOT NULL DEFAULT 0, longest_lease_ms INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO run VALUES(1,'8d6e02bee08b8cbca2e06dedefc2d50f','boot-1',0,10,1,0,8,1,8,80,600,2,604800000);
CREATE TABLE sample(
  row INTEGER PRIMARY KEY, sample_id TEXT NOT NULL UNIQUE, generation INTEGER NOT NULL, incarnation TEXT NOT NULL,
  bytes INTEGER NOT NULL, tokens INTEGER NOT NULL, in_place INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
  claims INTEGER NOT NULL DEFAULT 0) STRICT;
INSERT INTO sample VALUES(0,'p1',2,'cafe',100,10,0,3,0);
INSERT INTO sample VALUES(1,'p2',3,'cafe',100,10,0,3,0);
INSERT INTO sample VALUES(2,'p3',4,'cafe',100,10,0,2,0);
INSERT INTO sample VALUES(3,'p4',5,'cafe',100,10,0,0,4);
INSERT INTO sample VALUES(4,'p5',6,'cafe',100,10,0,0,5);
INSERT INTO sample VALUES(5,'p6',7,'cafe',100,10,0,0,4);
INSERT INTO sample VALUES(6,'p7',8,'cafe',100,10,0,0,5);
INSERT INTO sample VALUES(7,'p8',9,'cafe',100,10,0,0,5);
CREATE TABLE sample_ref(row INTEGER PRIMARY KEY, json TEXT NOT NULL) STRICT;
INSERT INTO sample_ref VALUES(0,'{"sample_id":"p1","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p1","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":2,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(1,'{"sample_id":"p2","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p2","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":3,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(2,'{"sample_id":"p3","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p3","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":4,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(3,'{"sample_id":"p4","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p4","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":5,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(4,'{"sample_id":"p5","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p5","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":6,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(5,'{"sample_id":"p6","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p6","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":7,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(6,'{"sample_id":"p7","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p7","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":8,"incarnation":"cafe"}}');
INSERT INTO sample_ref VALUES(7,'{"sample_id":"p8","run_id":"run","source_task_id":null,"feature_store_uri":"disagg://store/p8","feature_keys":{},"feature_specs":{"x":{"name":"x","shape":[100],"dtype":"uint8","device_hint":null,"required":true,"target_repr":null,"target_meta":{}}},"strategy":"eagle3","schema_version":1,"target_model_version":"unknown","draft_weight_version":null,"tokenizer_version":"unknown","num_tokens":10,"estimated_bytes":100,"metadata":{"generation":9,"incarnation":"cafe"}}');
CREATE TABLE timeline(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, parent INTEGER NOT NULL, first_step INTEGER NOT NULL,
  first_window INTEGER NOT NULL, width INTEGER NOT NULL, launch TEXT NOT NULL, lost INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, number)) STRICT, WITHOUT ROWID;
INSERT INTO timeline VALUES(1,1,0,0,0,2,'a',0);
INSERT INTO timeline VALUES(1,2,1,1,1,1,'b',1);
INSERT INTO timeline VALUES(2,1,0,0,0,1,'',0);
INSERT INTO timeline VALUES(5,1,0,0,0,1,'c',0);
INSERT INTO timeline VALUES(6,1,0,0,0,2,'',0);
CREATE TABLE token_count(token INTEGER PRIMARY KEY, count INTEGER NOT NULL, first_row INTEGER NOT NULL) STRICT;
INSERT INTO token_count VALUES(7,20,0);
INSERT INTO token_count VALUES(100,1,0);
INSERT INTO token_count VALUES(101,1,1);
INSERT INTO token_count VALUES(102,1,2);
INSERT INTO token_count VALUES(103,1,3);
INSERT INTO token_count VALUES(104,1,4);
INSERT INTO token_count VALUES(105,1,5);
INSERT INTO token_count VALUES(106,1,6);
INSERT INTO token_count VALUES(107,1,7);
INSERT INTO token_count VALUES(108,1,8);
INSERT INTO token_count VALUES(109,1,9);
CREATE TABLE trainer_rank(
  consumer INTEGER NOT NULL, timeline INTEGER NOT NULL, number INTEGER NOT NULL, holder TEXT NOT NULL,
  PRIMARY KEY (consumer, timeline, number)) STRICT, WITHOUT ROWID;
INSERT INTO trainer_rank VALUES(1,1,0,'c335477fdb5048e227d4acc75ac2a2b9');
INSERT INTO trainer_rank VALUES(1,2,0,'c335477fdb5048e227d4acc75ac2a2b9');
INSERT INTO trainer_rank VALUES(2,1,0,'c335477fdb5048e227d4acc75ac2a2b9');
INSERT INTO trainer_rank VALUES(6,1,0,'1dd31689d29f5b2956188733f8a280e3');
CREATE TABLE training_window(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, timeline INTEGER, step INTEGER,
  failed INTEGER NOT NULL DEFAULT 0, going INTEGER NOT NULL DEFAULT 0, refs_through INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (consumer, number)) STRICT, WITHOUT ROWID;
INSERT INTO training_window VALUES(1,0,1,1,1,2,2);
INSERT INTO training_window VALUES(1,1,NULL,NULL,0,0,4);
INSERT INTO training_window VALUES(2,0,1,1,0,1,1);
INSERT INTO training_window VALUES(2,1,1,2,0,1,2);
INSERT INTO training_window VALUES(2,2,1,3,0,1,3);
INSERT INTO training_window VALUES(2,3,1,4,0,0,4);
INSERT INTO training_window VALUES(5,0,1,1,1,0,2);
INSERT INTO training_window VALUES(5,1,NULL,NULL,0,0,4);
INSERT INTO training_window VALUES(6,0,NULL,NULL,0,0,2);
CREATE TABLE window_ref(
  consumer INTEGER NOT NULL, number INTEGER NOT NULL, position INTEGER NOT NULL, row INTEGER NOT NULL, reason TEXT,
  PRIMARY KEY (consumer, number, position)) STRICT, WITHOUT ROWID;
INSERT INTO window_ref VALUES(1,0,0,0,NULL);
INSERT INTO window_ref VALUES(1,0,1,1,'not finite');
INSERT INTO window_ref VALUES(1,1,0,3,NULL);
INSERT INTO window_ref VALUES(1,1,1,4,NULL);
INSERT INTO window_ref VALUES(2,0,0,0,NULL);
INSERT INTO window_ref VALUES(2,1,0,1,NULL);
INSERT INTO window_ref VALUES(2,2,0,2,NULL);
INSERT INTO window_ref VALUES(2,3,0,3,NULL);
INSERT INTO window_ref VALUES(5,0,0,3,NULL);
INSERT INTO window_ref VALUES(5,0,1,4,'a cable was out');
INSERT INTO window_ref VALUES(5,1,0,5,NULL);
INSERT INTO window_ref VALUES(5,1,1,6,NULL);
INSERT INTO window_ref VALUES(6,0,0,3,NULL);
INSERT INTO window_ref VALUES(6,0,1,4,NULL);
CREATE INDEX prompt_pending ON prompt(row) WHERE state = 0;
CREATE INDEX prompt_expiry ON prompt(expires_ms) WHERE state = 1;
CREATE INDEX prompt_holder ON prompt(holder) WHERE state = 1;
CREATE INDEX prompt_failed ON prompt(row) WHERE state = 3;
CREATE INDEX sample_may_go ON sample(row) WHERE state = 1;
CREATE INDEX sample_going ON sample(row) WHERE state = 2;
CREATE INDEX timeline_launch ON timeline(consumer, launch);
CREATE INDEX checkpoint_line ON checkpoint(consumer, step) WHERE abandoned = 0;
CREATE INDEX training_window_step ON training_window(consumer, step) WHERE step IS NOT NULL;
CREATE INDEX window_ref_row ON window_ref(row, consumer);
CREATE INDEX queue_available ON queue_ref(consumer, row) WHERE state = 0;
CREATE INDEX queue_expiry ON queue_ref(consumer, expires_ms) WHERE state = 1;
CREATE INDEX queue_holder ON queue_ref(consumer, holder) WHERE state = 1;
CREATE INDEX queue_failed ON queue_ref(consumer, row) WHERE state = 3;
CREATE INDEX window_ref_failed ON window_ref(consumer, number, position) WHERE reason IS NOT NULL;
COMMIT;
PRAGMA application_id = 0x44464C47;
PRAGMA user_version = 5;
