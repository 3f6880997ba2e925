// Asks the server in the ways of the AI SDK, and prints what came back as one JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "softprompt",
  baseURL: process.env.SOFTPROMPT_URL,
  apiKey: "none",
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const model = provider(process.env.SOFTPROMPT_MODEL);
const common = { model, maxRetries: 0, temperature: 0, maxOutputTokens: 60 };
const system = "Answer in one short sentence.";
const messages = [
  { role: "user", content: "My name is Ada." },
  { role: "assistant", content: "Nice to meet you, Ada." },
  { role: "user", content: "What is my name?" },
];

const ways = {
  async text() {
    const { text, finishReason, usage } = await generateText({ ...common, system, messages });
    return { text, finishReason, usage };
  },
  async stream() {
    const { textStream } = streamText({ ...common, system, messages });
    let text = "";
    for await (const part of textStream) text += part;
    return { text };
  },
  async object() {
    const schema = z.object({ name: z.string(), age: z.number().int() });
    const { object } = await generateObject({ ...common, schema, prompt: "Ada is 36 years old." });
    return { object };
  },
  async tool() {
    const weather = tool({
      description: "Find the weather of a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => `sunny in ${city}`,
    });
    const { toolCalls, toolResults } = await generateText({
      ...common,
      tools: { weather },
      toolChoice: "required",
      prompt: "What is the weather in Paris?",
    });
    return { calls: toolCalls.map(({ toolName, input }) => ({ toolName, input })), results: toolResults.length };
  },
};

console.log(JSON.stringify(await ways[process.argv[2]]()));
