// SPDX-License-Identifier: Apache-2.0
// Tests of the RNN's kernels, a part of kernels_test.cpp.

static void hyperbolic_tangent() {
    for (double x = -12; x < 12; x += 1e-3) {
        check_close(tanh(VecF32{} + float(x))[0], std::tanh(float(x)), 4e-7 * std::abs(std::tanh(x)));
        check_close(sigmoid(VecF32{} + float(x))[kLanes - 1], 1 / (1 + std::exp(-x)), 2e-7);
    }
    CHECK(tanh(VecF32{} + INFINITY)[0] > 0.999999f && tanh(VecF32{} - INFINITY)[0] < -0.999999f);
    CHECK(std::isnan(tanh(VecF32{} + NAN)[0]) && std::isnan(sigmoid(VecF32{} + NAN)[0]));
}

static void cells() {
    auto sigma = [](double x) { return 1 / (1 + std::exp(-x)); };
    for (int cell : {kTanh, kGru, kLstm})
        for (int width : {1, kLanes, kLanes + 3, 4 * kLanes}) {
            int padded = padded_length(width), size = (count_gates(cell) - 1) * width + padded;
            std::vector<float> input = random_floats(size), recurrent = random_floats(size);
            std::vector<float> hidden = random_floats(padded), state = random_floats(padded);
            std::vector<float> next(padded), next_state(padded);
            step_cell(cell, width, input.data(), recurrent.data(), hidden.data(), state.data(), next.data(),
                      next_state.data());
            for (int i = 0; i < width; i++) {
                auto sum = [&](int gate) { return double(input[gate * width + i]) + recurrent[gate * width + i]; };
                double expected = std::tanh(sum(0));
                if (cell == kGru) {
                    double fresh = std::tanh(input[2 * width + i] + sigma(sum(0)) * recurrent[2 * width + i]);
                    expected = (1 - sigma(sum(1))) * fresh + sigma(sum(1)) * hidden[i];
                } else if (cell == kLstm) {
                    double kept = sigma(sum(1)) * state[i] + sigma(sum(0)) * std::tanh(sum(2));
                    check_close(next_state[i], kept, 2e-6);
                    expected = sigma(sum(3)) * std::tanh(kept);
                }
                check_close(next[i], expected, 2e-6);
            }
        }
}

static void additive_attention() {
    for (int length : {1, kLanes, kLanes + 1})
        for (int width : {1, 7, 40}) {
            int padded = padded_length(length);
            std::vector<float> query = random_floats(width), score = random_floats(width), scores(padded, NAN);
            std::vector<float> keys = random_floats(padded * width);
            additive_scores(query.data(), keys.data(), score.data(), length, width, scores.data());
            for (int t = 0; t < length; t++) {
                double expected = 0;
                for (int k = 0; k < width; k++)
                    expected += score[k] * std::tanh(double(query[k]) + keys[k * padded + t]);
                check_close(scores[t], expected, 1e-5);
            }
        }
}

// A stack with random weights.
struct TestRecurrentStack {
    std::vector<TestLinear> linears;
    std::vector<RecurrentLayer> layers;
    RecurrentStack stack;

    TestRecurrentStack(int cell, int directions, int input_size, int width, Precision precision) {
        int gates = count_gates(cell) * width, between = directions * width;
        linears.reserve(6); // Linear points into them
        auto map = [&](int inputs, int outputs) {
            linears.emplace_back(inputs, outputs, precision, 0.2f);
            return linears.back().map;
        };
        for (int inputs : {input_size, between}) {
            RecurrentLayer layer = {map(inputs, directions * gates), {map(width, gates)}, inputs == between};
            if (directions == 2)
                layer.hidden[1] = map(width, gates);
            layers.push_back(layer);
        }
        stack = {layers.data(), 2, cell, directions, 0, input_size, width};
    }
};

static std::vector<float> run_recurrent_encoder(const TestRecurrentStack &test, const std::vector<float> &embedding,
                                                const std::vector<int64_t> &tokens, const uint8_t *mask, int sentences,
                                                int threads) {
    const RecurrentStack &stack = test.stack;
    std::vector<float> embedded; // each token once
    std::vector<int64_t> types, types_of;
    for (int64_t token : tokens) {
        types_of.push_back(std::find(types.begin(), types.end(), token) - types.begin());
        if (types_of.back() < int64_t(types.size()))
            continue;
        types.push_back(token);
        auto row = embedding.begin() + token * stack.input_size;
        embedded.insert(embedded.end(), row, row + stack.input_size);
    }
    int rows = int(tokens.size()), length = rows / sentences, width = stack.directions * stack.hidden_size;
    TestScratch memory(sentences * std::max(length, stack.directions),
                       std::max(count_gates(stack.cell) * width, stack.input_size), 1, threads);
    int outputs = rows * width, finals = sentences * 2 * width;
    std::vector<float> found(outputs + 2 * finals); // the outputs, the hidden states, the cell states
    recurrent_encode(&stack, &memory.scratch, sentences, length, mask, types_of.data(), embedded.data(),
                     int(types.size()), &found[0], &found[outputs],
                     stack.cell == kLstm ? &found[outputs + finals] : nullptr, threads);
    return found;
}

// A sentence is encoded alike alone, in a batch, by other numbers of threads and with padding behind it.
static void recurrent_encoding() {
    for (int cell : {kTanh, kGru, kLstm})
        for (int directions : {1, 2})
            for (Precision precision : {kFloat32, kBFloat16, kInt8}) {
                int width = kLanes + 3, length = 4, sentences = 9, vocab_size = 11, outputs = directions * width;
                TestRecurrentStack test(cell, directions, 10, width, precision);
                std::vector<float> embedding = random_floats(vocab_size * 10);
                std::vector<int64_t> tokens(sentences * length);
                for (int i = 0; i < sentences * length; i++)
                    tokens[i] = i * 5 % vocab_size;
                std::vector<uint8_t> mask(sentences * length, 1);
                mask[3] = mask[2] = 0;
                std::vector<float> all = run_recurrent_encoder(test, embedding, tokens, mask.data(), sentences, 3);
                for (int threads : {1, 2}) {
                    std::vector<int64_t> first(tokens.begin(), tokens.begin() + 2);
                    std::vector<float> alone = run_recurrent_encoder(test, embedding, first, nullptr, 1, threads);
                    double tolerance = precision == kFloat32 ? 1e-5 : 2e-2;
                    for (int i = 0; i < 2 * outputs; i++)
                        check_close(all[i], alone[i], tolerance);
                    int finals = sentences * 2 * outputs;
                    for (int part = 0; part < 2; part++)
                        for (int i = 0; i < 2 * outputs; i++)
                            check_close(all[sentences * length * outputs + part * finals + i],
                                        alone[(2 + 2 * part) * outputs + i], tolerance);
                }
                for (int i = 2 * outputs; i < 4 * outputs; i++)
                    CHECK(all[i] == 0); // padding
            }
}

// A batch in the midst of being decoded, as `NativeRecurrentState` holds it.
struct TestRecurrentDecoder {
    int vocab_size = 31, width, parts;
    std::vector<float> source, mask, attention, states, logits;
    std::vector<int64_t> slots, parents, parent_buffer;
    std::vector<int32_t> row_buffer;
    TestScratch memory;
    RecurrentState state;
    RecurrentStep step;

    TestRecurrentDecoder(const RecurrentDecoder &decoder, const std::vector<float> &encoded, int sentences, int length,
                         int beams, int threads)
        : width(round_up(std::max(decoder.stack.hidden_size, decoder.embedding_size), NR)),
          parts(2 * (decoder.stack.cell == kLstm ? 2 : 1) + 1),
          source(sentences * (padded_length(length) * decoder.stack.hidden_size +
                              length * value_width(decoder.encoder_width)),
                 NAN),
          mask(sentences * length), attention(sentences * beams * length, NAN),
          states(2 * parts * sentences * beams * width, 0.25f), logits(sentences * beams * round_up(vocab_size, NR), NAN),
          slots(sentences), parents(sentences), parent_buffer(sentences * beams), row_buffer(2 * sentences * beams + 1),
          memory(sentences * std::max(beams, length),
                 std::max({count_gates(decoder.stack.cell) * decoder.stack.hidden_size, decoder.stack.input_size,
                           value_width(decoder.encoder_width) + decoder.stack.hidden_size, decoder.embedding_size}),
                 length, threads) {
        std::iota(slots.begin(), slots.end(), 0);
        std::iota(parents.begin(), parents.end(), 0);
        if (decoder.keys.weight)
            recurrent_project_source(&decoder, &memory.scratch, encoded.data(), sentences, length, source.data(),
                                     threads);
        state = {sentences,     length,       sentences * beams, width,       0,
                 states.data(), slots.data(), source.data(),     mask.data(), attention.data()};
        step = {&decoder, &memory.scratch, &state, nullptr, nullptr, parent_buffer.data(), row_buffer.data(), logits.data(),
                nullptr, nullptr, round_up(vocab_size, NR), 0, threads};
    }

    int read(const std::vector<int64_t> &tokens, int alive, TopK *topk) {
        step.tokens = tokens.data(), step.parents = parents.data(), step.alive = alive, step.topk = topk;
        return recurrent_step(&step);
    }

    void reorder(const int64_t *beam_indices, int alive, int beams) {
        parents.resize(state.batch_size * beams);
        for (int i = 0; i < state.batch_size * beams; i++)
            parents[i] = i / beams * alive + beam_indices[i];
    }
};

// A search whose top k are those of all logits, also where hypotheses are deferred; a sentence alone has the logits and
// attention that it has in a batch.
static void check_recurrent_search(int cell, int feeding, bool has_attention, bool is_additive, Precision precision,
                                   int threads) {
    int embedding_size = 10, width = kLanes + 3, encoder_width = 2 * width, vocab_size = 31, length = kLanes + 1;
    int beams = 5, sentences = 11, stride = round_up(vocab_size, NR), size = length * encoder_width;
    int fed = feeding == kContext ? encoder_width : feeding == kAttentional ? embedding_size : 0;
    TestRecurrentStack test(cell, 1, embedding_size + fed, width, precision);
    TestLinear keys(encoder_width, width, precision), query(width, width, precision);
    TestLinear readout((has_attention ? encoder_width : 0) + width, embedding_size, precision);
    TestLinear projection(embedding_size, vocab_size, precision);
    std::vector<float> score = random_floats(width), embedding = random_floats(vocab_size * embedding_size);
    RecurrentDecoder decoder = {test.stack,       has_attention ? keys.map : Linear{}, is_additive ? query.map : Linear{},
                                readout.map,      projection.map,                      score.data(),
                                embedding.data(), embedding_size,                      encoder_width,
                                feeding,          vocab_size};
    std::vector<float> encoded = random_floats(sentences * size), last(encoded.end() - size, encoded.end());
    TestRecurrentDecoder batch(decoder, encoded, sentences, length, beams, threads);
    TestRecurrentDecoder ranked(decoder, encoded, sentences, length, beams, threads);
    TestRecurrentDecoder alone(decoder, last, 1, length, beams, threads);
    double tolerance = precision == kFloat32 ? 1e-4 : 0.1;
    std::vector<int64_t> tokens(sentences, 3);
    std::vector<float> totals(sentences, 0);
    for (int t = 0, alive = 1; t < 6; t++, alive = beams) {
        int k = std::min(3 * beams, alive * vocab_size);
        TestTopK topk(sentences, alive, std::min(k, vocab_size), k, beams);
        topk.structure.beam_scores = totals.data();
        CHECK(batch.read(tokens, alive, nullptr) == -1);
        CHECK(ranked.read(tokens, alive, &topk.structure) == -1);
        CHECK(alone.read(std::vector<int64_t>(tokens.end() - alive, tokens.end()), alive, nullptr) == -1);
        for (int i = 0; i < alive * stride; i++)
            if (i % stride < vocab_size)
                check_close(alone.logits[i], batch.logits[(sentences - 1) * alive * stride + i], tolerance);
        for (int i = 0; has_attention && i < alive * length; i++)
            check_close(alone.attention[i], batch.attention[(sentences - 1) * alive * length + i], tolerance);
        std::vector<int64_t> parents, next;
        std::vector<float> next_totals;
        for (int sentence = 0; sentence < sentences; sentence++) {
            std::vector<double> all;
            for (int row = sentence * alive; row < (sentence + 1) * alive; row++) {
                double sum = 0;
                for (int j = 0; j < vocab_size; j++)
                    sum += std::exp(double(batch.logits[row * stride + j]));
                for (int j = 0; j < vocab_size; j++)
                    all.push_back(totals[row] + batch.logits[row * stride + j] - std::log(sum));
            }
            check_ranking(topk, sentence, beams, all, vocab_size, &parents, &next, &next_totals);
        }
        tokens = next, totals = next_totals;
        for (TestRecurrentDecoder *each : {&batch, &ranked})
            each->reorder(parents.data(), alive, beams);
        alone.reorder(parents.data() + parents.size() - beams, alive, beams);
    }
    tokens.assign(sentences * beams, 3);
    tokens[4] = vocab_size, tokens[7] = -1;
    CHECK(batch.read(tokens, beams, nullptr) == 4);
    tokens[4] = 0;
    CHECK(batch.read(tokens, beams, nullptr) == 7);
}

static void recurrent_decoding() {
    for (Precision precision : {kFloat32, kBFloat16, kInt8}) {
        check_recurrent_search(kGru, kContext, true, true, precision, 3);
        check_recurrent_search(kLstm, kAttentional, true, false, precision, 2);
        check_recurrent_search(kLstm, kNothing, true, true, precision, 1);
        check_recurrent_search(kTanh, kNothing, false, false, precision, 3);
    }
}

static void recurrent_several_steps() {
    int embedding_size = 10, width = kLanes + 3, vocab_size = 31;
    TestRecurrentStack test(kLstm, 1, 2 * embedding_size, width, kFloat32);
    TestLinear keys(2 * width, width, kFloat32), query(width, width, kFloat32);
    TestLinear readout(3 * width, embedding_size, kFloat32), projection(embedding_size, vocab_size, kFloat32);
    std::vector<float> score = random_floats(width), embedding = random_floats(vocab_size * embedding_size);
    RecurrentDecoder decoder = {test.stack,       keys.map,       query.map, readout.map,  projection.map, score.data(),
                                embedding.data(), embedding_size, 2 * width, kAttentional, vocab_size};
    std::vector<float> encoded = random_floats(20 * 5 * 2 * width);
    for (int beams : {1, 4}) {
        TestRecurrentDecoder together(decoder, encoded, 20, 5, beams, 2);
        TestRecurrentDecoder singly(decoder, encoded, 20, 5, beams, 2);
        check_steps(together, singly, 20, beams, [&](const int64_t *beam_indices, int alive) {
            singly.reorder(beam_indices, alive, beams);
        });
    }
}
