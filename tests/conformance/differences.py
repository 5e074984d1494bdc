"""What vLLM is known to do otherwise: {test: why}. Seen in 0.32 and 0.33, with the Modal script's flags."""

OWN_ERROR = "vLLM's 401 is a string, not OpenAI's error object"
CODES = "vLLM's error codes are the status as a number, and its params differ"
OPEN = "vLLM guards /v1 only; deployment/gate.py hides the other routes"
METRICS = "vLLM's metrics have names of their own"

VLLM = {
    "test_a_wrong_key_is_refused": OWN_ERROR,
    "test_the_clients_exception_has_the_code": OWN_ERROR,
    "test_every_route_asks_for_the_key": OPEN,
    "test_an_unknown_model_is_not_found": CODES,
    "test_a_malformed_field_is_named": CODES,
    "test_a_body_that_is_no_request_is_refused": CODES,
    "test_what_is_not_offered_is_refused": "vLLM offers tools, schemas, echo with logprobs and best_of",
    "test_more_than_the_context_is_refused": CODES,
    "test_an_unknown_route_is_not_found": CODES,
    "test_another_method_is_refused": CODES,
    "test_another_content_type_is_refused": "vLLM answers 400",
    "test_a_body_over_one_megabyte_is_refused": "deployment/gate.py limits it, vLLM does not",
    "test_the_documented_limits_hold": "vLLM has no limit on n and stop",
    "test_forged_control_tokens_make_no_turn": "vLLM takes a message's control tokens as they are",
    "test_tokenize_gives_the_prompts_tokens": OPEN,
    "test_tokenize_gives_the_text_of_the_prompt": OPEN,
    "test_token_ids_are_a_prompt": OPEN,
    "test_lists_of_token_ids_are_prompts": OPEN,
    "test_the_gallery_is_a_list": "only the lab's server knows the run's held-out prompts",
    "test_health_is_open": "vLLM's body is empty",
    "test_the_openapi_document_lists_the_routes": OPEN,
    "test_a_response_has_an_id_of_its_own": "vLLM needs --enable-request-id-headers",
    "test_a_stream_ends_with_an_empty_delta": "vLLM's last content may carry the reason",
    "test_voice_is_there_where_its_packages_are": CODES,
    "test_a_client_that_leaves_frees_the_engine": METRICS,
    "test_a_client_that_leaves_in_mid_stream_frees_the_engine": METRICS,
    "test_a_client_that_gives_up_frees_the_engine": METRICS,
    "test_a_body_that_never_comes_whole_holds_nobody_up": METRICS,
    "test_the_answer_comes_while_it_is_made": METRICS,
    "test_metrics_count_tokens": METRICS,
}
